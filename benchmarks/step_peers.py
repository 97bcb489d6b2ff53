"""Steps on the 2.63 M-parameter Llama on which the peers were measured: expunge against the plain way."""

from __future__ import annotations

from expunge.data.collate import Encoder
from measure import Result, Settings, main, side_by_side
from ours import OurStep
from plain import PlainStep, graddiff, npo_with_second_model
from shapes import peers_facts, peers_model, peers_tokenizer

BATCH = 16
ANSWER_SHARES = (0.25, 0.5)
OPEN_UNLEARNING = {"GradDiff": 0.337, "NPO": 0.467}
"""CPU seconds per step, measured by us with the same shapes, on another day."""


def measure(settings: Settings, result: Result) -> None:
    """Bars: graddiff 1.2 and npo 1.5 times faster than the plain way."""
    model, encoder = peers_model(), Encoder(peers_tokenizer())
    for share in ANSWER_SHARES:
        facts = peers_facts(BATCH, share, seed=1), peers_facts(BATCH, share, seed=2)
        batch = OurStep(model, encoder, "graddiff", facts, BATCH).pair()
        losses = {"graddiff": graddiff, "npo": npo_with_second_model(model)}
        ways = {f"plain {name}": PlainStep(model, loss, *batch) for name, loss in losses.items()}
        ours = {f"expunge {name}": OurStep(model, encoder, name, facts, BATCH) for name in losses}
        times = side_by_side({**ways, **ours}, settings.repetitions(60))
        result.add_times({f"{name}, {share:.0%} answer": found for name, found in times.items()})
        for name, bar in (("graddiff", 1.2), ("npo", 1.5)):
            what = f"plain {name} / expunge {name}, {share:.0%} answer"
            result.claim_ratio(what, times[f"plain {name}"], times[f"expunge {name}"], bar, at_least=True)
    result.rows |= {f"OpenUnlearning {name} (peers.md)": {"cpu_median_s": s} for name, s in OPEN_UNLEARNING.items()}
    parameters = sum(p.numel() for p in model.parameters())
    result.notes.append(f"{parameters:,} parameters, batch {BATCH} + {BATCH}, 25 to 49 tokens, mean 37, fp32")
    result.notes.append("the share of answer tokens behind the peers' figures is not known, so two are measured")


if __name__ == "__main__":
    main("step_peers", measure)
