"""Is the verdict right? `python benchmarks/verdict.py --runs FOLDER`, about 15 minutes on two cores.

Makes models of `people` whose truth is planted (verdict_models.py says how), gathers for each the evidence that
`expunge audit` would gather, against a gold control, against made-up subjects and against ignorance, and lets the rule
of `expunge.audit.verdict` decide. Keeps a record per model in docs/results/records/verdict/ (those that are there are
kept; `--seeds 3 4` does some worlds), beside them how long a run from nothing took, and writes docs/results/verdict.md
and .json from the records alone (`--tables`).

The rule's thresholds are fixed on one half of the worlds and reported on the other (verdict_tables.py says how). Whole
worlds are split, so no model of the second half shares a training, a fact or a control with one of the first.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from pydantic import TypeAdapter
from transformers import PreTrainedModel

import expunge
from diagnosis import World
from expunge.attacks.base import Attack, AttackResult
from expunge.attacks.quantise import Quantise
from expunge.attacks.relearn import RelearnHarmful, RelearnRelated
from expunge.attacks.weights import lent
from expunge.audit.control import Recovery, recovery, residual
from expunge.audit.evidence import Evidence, Tried, gather
from expunge.audit.snapshot import Caps, Snapshot, control_snapshot, snapshot
from expunge.data.twins import scored_twins
from expunge.errors import InputError
from expunge.models.storage import atomic_write_text
from expunge.request import Request
from verdict_models import Case, world, world_cases
from verdict_tables import ELAPSED, RECORDS, WORLDS, tables

RATES = (3e-4, 1e-3)
ATTACKS: tuple[Attack, ...] = (
    RelearnHarmful(learning_rates=RATES, max_steps=24, eval_every=12),
    RelearnRelated(learning_rates=RATES, max_steps=16, eval_every=8),
    Quantise(bits=(4,), groups=(32, 128)),
)
CAPS = Caps(new_tokens=4, attribution=1)
SMALL = 12
"""Facts of the small sets, on which the rule must refuse to decide."""
ON_SMALL = ("retrained", "rank_one", "untouched")
SMALL_WORLDS = 2

_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)


class Bench:
    """One world with what all of its models are compared with; the control is attacked once."""

    def __init__(self, of: World, request: Request) -> None:
        self.of, self.request = of, request
        self.before = snapshot(of.original, of.encoder, request, caps=CAPS)
        self.gold = control_snapshot(of.gold, of.encoder, request, CAPS)
        self.never: dict[str, AttackResult] = {}
        self.twins = scored_twins(request)

    def evidence(self, model: PreTrainedModel) -> dict[str, Any]:
        """As JSON, by what recovery is measured against."""
        after = snapshot(model, self.of.encoder, self.request, reference=self.before, caps=CAPS)
        results = [attack.run(model, self.of.encoder, self.request, twins=self.twins).result for attack in ATTACKS]
        original, gold = self.before.forget, [self._control(result) for result in results]
        alone = residual(after.forget, original)
        return {
            "gold": self._gathered(
                after,
                residual(after.forget, original, self.gold.forget),
                results,
                [recovery(result, original, control) for result, control in zip(results, gold, strict=True)],
                self.gold,
            ),
            "twins": self._gathered(
                after, alone, results, [recovery(result, original, twins=self.before.twins) for result in results]
            ),
            "none": self._gathered(after, alone, results, [recovery(result, original) for result in results]),
        }

    def _control(self, result: AttackResult) -> AttackResult:
        if result.name not in self.never:
            attack = next(attack for attack in ATTACKS if attack.name == result.name)
            self.never[result.name] = attack.run(self.of.gold, self.of.encoder, self.request, like=result).result
        return self.never[result.name]

    def _gathered(
        self,
        after: Snapshot,
        left: Recovery,
        results: Sequence[AttackResult],
        shares: Sequence[Recovery],
        control: Snapshot | None = None,
    ) -> dict[str, Any]:
        tried = [
            Tried(result.name, replace(share, curve=()), result.spent)
            for result, share in zip(results, shares, strict=True)
        ]
        told: dict[str, Any] = _plain(
            _EVIDENCE.dump_python(gather(self.before, after, left, tried, control), mode="json")
        )
        return told


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: as words, which the evidence reads back."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run(folder: Path, seed: int) -> None:
    """Measure what is missing of one world and store the records."""
    torch.set_num_threads(1)
    missing = [case for case in world_cases(seed) if not _path(seed, case).is_file()]
    if not missing:
        return
    of = world(folder, seed)
    reworded = of.request.test["paraphrase"][:SMALL]
    small = replace(of.request, forget=of.request.forget[:SMALL], test={**of.request.test, "paraphrase": reworded})
    whole, part = Bench(of, of.request), Bench(of, small) if seed < SMALL_WORLDS else None
    for case in missing:
        began, record = time.process_time(), {"seed": seed, "name": case.name, "truth": case.truth}
        try:
            about, model = case.make(folder, of)
        except InputError as error:
            record |= {"not_made": str(error)}
        else:
            with lent(model) as weights:
                record |= {"about": about, "weights": weights.digest()}
            record["evidence"] = whole.evidence(model)
            if part is not None and case.name in ON_SMALL:
                record["small"] = part.evidence(model)
        record |= {
            "data": of.request.hashes()["forget"],
            "facts": len(of.request.forget),
            "attacks": {attack.name: asdict(attack) for attack in ATTACKS},  # type: ignore[call-overload]
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "expunge": expunge.__version__,
                "platform": platform.platform(terse=True),
            },
            "seconds": round(time.process_time() - began, 1),
        }
        RECORDS.mkdir(parents=True, exist_ok=True)
        atomic_write_text(_path(seed, case), json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
        print(f"world {seed}, {case.name}: {record['seconds']:.0f} s of processor time", flush=True)


def _path(seed: int, case: Case) -> Path:
    return RECORDS / f"{seed:02d}-{case.name}.json"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/diagnosis"), help="trained models, shared with diagnosis.py"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=list(range(WORLDS)), help="of the worlds, all by default"
    )
    parser.add_argument("--processes", type=int, default=2, help="worlds at a time, one thread each")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if not options.tables:
        from_nothing, began = not (options.runs.exists() or RECORDS.exists()), time.perf_counter()
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(run, options.runs), options.seeds))
        if from_nothing:
            minutes, worlds = (time.perf_counter() - began) / 60, len(options.seeds)
            elapsed = {"minutes": minutes, "worlds": worlds, "cores": os.cpu_count()}
            atomic_write_text(ELAPSED, json.dumps(elapsed) + "\n")
    tables()


if __name__ == "__main__":
    main()
