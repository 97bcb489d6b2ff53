"""Steps on SmolLM2 with the demo's shapes: expunge against the plain way, ssiuu and durable against graddiff, bfloat16
products against float32 ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from expunge.models.precision import matmul_precision
from measure import Result, Settings, main, side_by_side, weighted
from ours import OurStep
from plain import PlainStep, graddiff, npo_with_second_model
from shapes import demo_facts, smollm2

BATCH = 8
BEGIN, GO_ON = range(2), range(2, 4)
"""Steps of durable, each pair one of its attacker and one without: the first pair begins a new attacker."""

PAIRS = 15
"""In so many pairs durable begins one attacker: its `period` is 30 steps."""


def measure(settings: Settings, result: Result) -> None:
    """Bars: graddiff 1.4 and npo 1.6 times faster than plain; ssiuu at most 1.5 and durable 2.5 times graddiff;
    graddiff 1.25 times faster at medium precision, where the processor multiplies bfloat16.
    """
    model, encoder = smollm2(settings)
    names = ("graddiff", "npo", "ssiuu", "durable")
    ours = {name: OurStep(model, encoder, name, demo_facts(), BATCH, GO_ON.stop) for name in names}
    plain = partial(PlainStep, model)
    batch = ours["graddiff"].pair()
    losses = {"graddiff": graddiff, "npo": npo_with_second_model(model)}
    ways: dict[str, Callable[[], None]] = {f"plain {name}": plain(loss, *batch) for name, loss in losses.items()}
    ways |= {f"expunge {name}": ours[name] for name in names[:3]}
    for name in ("graddiff", "durable"):
        ways |= {f"expunge {name}, {of(pair)}": partial(ours[name].walk, pair) for pair in (BEGIN, GO_ON)}
    ways["expunge graddiff, medium precision"] = matmul_precision("medium", "cpu")(ours["graddiff"])
    times = side_by_side(ways, settings.repetitions(12))
    result.add_times(times)
    for name, bar in (("graddiff", 1.4), ("npo", 1.6)):
        result.claim_ratio(
            f"plain {name} / expunge {name}", times[f"plain {name}"], times[f"expunge {name}"], bar, at_least=True
        )
    result.claim_ratio("ssiuu / graddiff", times["expunge ssiuu"], times["expunge graddiff"], 1.5, at_least=False)
    durable, others = (
        weighted((times[f"expunge {name}, {of(BEGIN)}"], 1), (times[f"expunge {name}, {of(GO_ON)}"], PAIRS - 1))
        for name in ("durable", "graddiff")
    )
    result.claim_ratio(f"durable / graddiff, of {2 * PAIRS} steps", durable, others, 2.5, at_least=False)
    pair = times["expunge graddiff"], times["expunge graddiff, medium precision"]
    result.claim_ratio("graddiff / graddiff at medium precision", *pair, 1.25, at_least=True)
    shapes = " + ".join(f"{tuple(b.input_ids.shape)}" for b in batch)
    result.notes.append(f"24 capitals of world_facts, forget and retain batch {shapes} tokens, fp32")


def of(pair: range) -> str:
    """What a pair of steps is called."""
    return f"steps {pair[0] + 1} and {pair[1] + 1}"


if __name__ == "__main__":
    main("step_smollm2", measure)
