"""Do diagnostics tell hidden facts from erased ones? `python benchmarks/diagnosis.py --runs FOLDER`, a minute a seed.

Builds models of `people` of which we know the truth, one set per seed, scores each with every diagnostic, attacks it,
and ablates neurons of an unlearned one. Keeps a record per seed in docs/results/records/diagnosis/ (finished seeds are
kept, `--seeds 3 4` does some) and writes docs/results/diagnosis.md and .json from the records alone (`--tables`).

    untouched   the original
    hidden      the original with a planted suppressor (expunge.audit.planted): neurons, rank_one, steering, output_bias
    gold        trained like the original, from the same weights in the same order, without the facts
    retrained   trained without the facts from other weights in another order
    rebuilt     the original's embeddings, without those of the forgotten people's names, and blocks of new weights,
                trained without the facts: erased, and yet in the original's basis
    graddiff    the original unlearned by graddiff to log-odds 0; nobody knows, so it is in no separation
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from transformers import PreTrainedModel

import expunge
from diagnosis_tables import RECORDS, tables
from expunge.attacks.base import AttackResult
from expunge.attacks.relearn import Relearn, RelearnHarmful, RelearnRelated
from expunge.attacks.weights import lent
from expunge.audit.ablation import ablated
from expunge.audit.attribution import Attribution, attributions
from expunge.audit.influence import compare
from expunge.audit.logit_lens import logit_lens
from expunge.audit.patching import knowledge_recovery, unlearning_depth
from expunge.audit.planted import Suppressor, plant
from expunge.audit.probe import linear_probe
from expunge.data.benchmarks.people import build, train_tiny
from expunge.data.collate import Encoded, Encoder, collate
from expunge.data.example import Example
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import describe
from expunge.models.load import load_model
from expunge.models.scores import score_items, summarise
from expunge.models.storage import atomic_write_text
from expunge.request import RETAIN_GROUPS, Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import unlearn
from expunge.unlearning.methods import build_method

SEEDS = range(20)
CAUSAL_SEEDS = range(5)
OTHER = 1000
"""Added to the seed of `retrained`."""

RATES = (1e-4, 3e-4, 1e-3)
SHORT = RelearnHarmful(pool="all", learning_rates=(3e-4,), max_steps=8, eval_every=4)
LONG: dict[str, Relearn] = {
    "harmful": RelearnHarmful(pool="all", learning_rates=RATES, max_steps=48, eval_every=8),
    "related": RelearnRelated(learning_rates=RATES, max_steps=24, eval_every=4),
}
SUPPRESSORS: dict[str, dict[str, Any]] = {
    "neurons": {},
    "rank_one": {"learning_rate": 0.05},
    "steering": {"learning_rate": 0.1, "keep": 0.1, "steps": 60},
    "output_bias": {"learning_rate": 0.3, "keep": 0.1},
}
"""How each kind is trained; constants cannot tell people apart, so they must hurt what stays to work at all."""

COUNTS, DRAWS = (10, 100, 1000), 5
LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class World:
    """One seed: its request, and the two models that everything is compared with."""

    seed: int
    request: Request
    encoder: Encoder
    original: PreTrainedModel
    gold: PreTrainedModel

    @property
    def stays(self) -> tuple[Example, ...]:
        """All facts that both models were trained on."""
        tests = (example for group in RETAIN_GROUPS for example in self.request.test.get(group, ()))
        return (*self.request.retain, *tests)


def world(folder: Path, seed: int) -> World:
    """Trained where FOLDER does not hold it already."""
    request = build(seed=seed)
    loaded = [load_model(trained(folder, request, name, seed)) for name in ("original", "gold")]
    return World(seed, request, Encoder(loaded[0].tokenizer), *(each.model for each in loaded))


def trained(folder: Path, request: Request, name: str, seed: int) -> Path:
    path = folder / f"{name}-{seed}"
    if not (path / "config.json").is_file():
        train_tiny(request, with_forget=name == "original", seed=seed, output=path)
    return path


def truths(folder: Path, of: World) -> Iterator[tuple[dict[str, Any], PreTrainedModel]]:
    """Each model with what is true of it."""
    yield {"name": "untouched", "truth": "untouched"}, of.original
    for kind, settings in SUPPRESSORS.items():
        began = time.perf_counter()
        suppressor, scale, model = _hidden(of, kind, settings)
        about = {"suppressor": asdict(suppressor), "scale": scale, "seconds": time.perf_counter() - began}
        yield {"name": kind, "truth": "hidden", **about}, model
    yield {"name": "gold", "truth": "erased"}, of.gold
    other = load_model(trained(folder, of.request, "retrained", of.seed + OTHER)).model
    yield {"name": "retrained", "truth": "erased", "seed": of.seed + OTHER}, other
    yield {"name": "rebuilt", "truth": "erased"}, rebuilt(of)
    yield {"name": "graddiff", "truth": "unknown"}, unlearned(of)[0]


def _hidden(of: World, kind: str, settings: Mapping[str, Any]) -> tuple[Suppressor, float, PreTrainedModel]:
    """A suppressor in the first block for even seeds and the second for odd ones; in the other where it cannot hide."""
    for layer in (of.seed % 2, 1 - of.seed % 2):
        suppressor, model = Suppressor(kind, layer, seed=of.seed, **settings), deepcopy(of.original)
        try:
            planted = plant(model, of.encoder, of.request.forget, of.stays, suppressor)
        except InputError as error:
            print(f"seed {of.seed}: {error}")
        else:
            return suppressor, planted.scale, model
    raise SystemExit(f"seed {of.seed}: no {kind} hides the facts")


def rebuilt(of: World, epochs: int = 12, batch_size: int = 32, learning_rate: float = 2e-3) -> PreTrainedModel:
    """Trained without the facts from the original's embeddings; nothing else of the original is left."""
    model, width = deepcopy(of.original), of.original.config.initializer_range
    names = {i for e in of.request.forget for i in of.encoder.encode_text(f"{e.subject} {e.subject}").ids}
    generator = torch.Generator().manual_seed(of.seed)
    with torch.no_grad():
        for parameter in describe(model).blocks.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, width, generator=generator)
            else:
                parameter.fill_(1)
        table = model.get_input_embeddings().weight
        table[sorted(names)] = torch.randn(len(names), table.shape[1], generator=generator) * width
    rows = [of.encoder.encode(prompt, e.answer) for e in of.stays for prompt in (e.prompt, *e.paraphrases)]
    rows += [of.encoder.encode_text(prompt) for e in of.request.forget for prompt in (e.prompt, *e.paraphrases)]
    rows += [of.encoder.encode_text(text) for text in of.request.text]
    fit_rows(model, rows, of.encoder.pad_id, epochs, batch_size, learning_rate, of.seed)
    return model


def fit_rows(
    model: PreTrainedModel, rows: Sequence[Encoded], pad_id: int, epochs: int, batch_size: int, rate: float, seed: int
) -> None:
    order = PairedOrder(len(rows), 0, batch_size, seed)
    steps = epochs * order.steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        said = answer_log_probs(model, collate([rows[i] for i in order.at(step)[0]], pad_id))
        loss = -(said.sequence / said.counts).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def unlearned(of: World) -> tuple[PreTrainedModel, int]:
    """The original after graddiff, and its steps."""
    model = deepcopy(of.original)
    arguments = UnlearnArguments(learning_rate=LEARNING_RATE, seed=of.seed)
    return model, unlearn(model, of.encoder, of.request, build_method("graddiff"), arguments).steps


def diagnose(of: World, model: PreTrainedModel, before: Attribution) -> tuple[dict[str, float], dict[str, float]]:
    """Every diagnostic's value, larger where it says hidden, and what it took in seconds."""
    facts, encoder = of.request.forget, of.encoder
    values: dict[str, float] = {}
    seconds: dict[str, float] = {}

    def timed(names: Sequence[str], measure: Callable[[], Sequence[float]]) -> None:
        began = time.perf_counter()
        found = measure()
        for name, value in zip(names, found, strict=True):
            values[name], seconds[name] = float(value), time.perf_counter() - began

    def influence() -> list[float]:
        after = attributions(model, encoder, facts)
        told = [compare(before.in_terms_of(of), after.in_terms_of(of)) for of in ("probability", "log_odds")]
        return [each.hidden / max(each.hidden + each.erased, 1e-30) for each in told]

    timed(["no_attack"], lambda: [summarise(score_items(model, encoder, facts)).log_odds])
    timed(["influence_probability", "influence_log_odds"], influence)
    timed(["logit_lens"], lambda: [max(logit_lens(model, encoder, facts))])
    for sites in ("mlp", "attention", "both"):
        timed(
            [f"krs_{sites}"],
            lambda sites=sites: [
                knowledge_recovery(of.original, model, encoder, facts, sites=sites, window=1, new_tokens=1).mean
            ],
        )
    for positions in ("answer", "all"):
        timed(
            [f"uds_{positions}"],
            lambda where=positions: [
                1 - unlearning_depth(of.original, model, of.gold, encoder, facts, positions=where).value
            ],
        )
    timed(["probe"], lambda: [max(linear_probe(model, encoder, of.stays, facts).log_odds)])
    timed(["relearn_short"], lambda: [_gain(SHORT.run(model, encoder, of.request).result)])
    return values, seconds


def _gain(result: AttackResult) -> float:
    """Log-odds that the attack added on facts that it did not train on."""
    return result.best.log_odds - result.start.log_odds


def row(of: World, about: dict[str, Any], model: PreTrainedModel, before: Attribution) -> dict[str, Any]:
    """Everything that is measured on one model."""
    sets = {
        "forget": of.request.forget,
        "paraphrase": of.request.test["paraphrase"],
        "retain": of.request.retain,
        "held_out": of.request.test["held_out"],
    }
    scores = {name: asdict(summarise(score_items(model, of.encoder, examples))) for name, examples in sets.items()}
    values, seconds = diagnose(of, model, before)
    attacked = {name: attack.run(model, of.encoder, of.request).result for name, attack in LONG.items()}
    with lent(model) as weights:
        digest = weights.digest()
    return {
        **about,
        "weights": digest,
        "scores": scores,
        "diagnostics": {name: value if math.isfinite(value) else None for name, value in values.items()},
        "seconds_of": seconds,
        "attacks": {
            name: {
                "start": result.start.log_odds,
                "log_odds": result.best.log_odds,
                "accuracy": result.best_accuracy.accuracy,
                "seconds": result.seconds,
            }
            for name, result in attacked.items()
        },
    }


def causal(of: World) -> dict[str, Any]:
    """Log-odds of the facts in a model unlearned by graddiff, with neurons ablated."""
    (model, steps), facts = unlearned(of), of.request.forget
    one, other = (attributions(each, of.encoder, facts) for each in (of.original, model))
    layout, random = one.layout, Random(f"diagnosis/{of.seed}")

    def log_odds(neurons: Sequence[int], source: PreTrainedModel | None) -> float:
        with ablated(model, layout, neurons, source):
            return summarise(score_items(model, of.encoder, facts)).log_odds

    rows = []
    for m in COUNTS:
        chosen: list[tuple[str, Sequence[int]]] = [
            (f"largest D- of {kind}", compare(one.in_terms_of(kind), other.in_terms_of(kind)).d_minus.argsort()[-m:])
            for kind in ("probability", "log_odds")
        ]
        chosen += [("random", random.sample(range(layout.neurons), m)) for _ in range(DRAWS)]
        for which, like in tuple(chosen[:2]):
            chosen += [(f"random, maps of {which}", _same_maps(layout, like, random)) for _ in range(DRAWS)]
        for which, neurons in chosen:
            for put, source in (("original", of.original), ("zero", None)):
                rows.append({"m": m, "neurons": which, "put": put, "log_odds": log_odds(neurons, source)})
    before, after = (summarise(score_items(each, of.encoder, facts)) for each in (of.original, model))
    return {
        "seed": of.seed,
        "method": "graddiff",
        "learning_rate": LEARNING_RATE,
        "steps": steps,
        "neurons": layout.neurons,
        "original": asdict(before),
        "unlearned": asdict(after),
        "rows": rows,
    }


def _same_maps(layout: Any, like: Sequence[int], random: Random) -> list[int]:
    """As many random neurons of each linear map as `like` has."""
    found: list[int] = []
    for span in layout.spans:
        inside = sum(span.offset <= neuron < span.offset + span.size for neuron in like)
        found += random.sample(range(span.offset, span.offset + span.size), inside)
    return found


def run(folder: Path, seed: int) -> None:
    """Measure all models of one seed and store the record."""
    began, of = time.process_time(), world(folder, seed)
    before = attributions(of.original, of.encoder, of.request.forget)
    record = {
        "seed": seed,
        "benchmark": of.request.name,
        "data": of.request.hashes(),
        "models": [row(of, about, model, before) for about, model in truths(folder, of)],
        "causal": causal(of) if seed in CAUSAL_SEEDS else None,
        "settings": {
            name: {"name": attack.name, **asdict(attack)} for name, attack in {"short": SHORT, **LONG}.items()
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "expunge": expunge.__version__,
            "platform": platform.platform(terse=True),
        },
        "seconds": time.process_time() - began,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    atomic_write_text(RECORDS / f"people-{seed}.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"seed {seed}: {record['seconds']:.0f} s of processor time")


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/diagnosis"), help="where trained models are kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="0 to 19 by default")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in [] if options.tables else options.seeds:
        if not (RECORDS / f"people-{seed}.json").is_file():
            run(options.runs, seed)
    tables()


if __name__ == "__main__":
    main()
