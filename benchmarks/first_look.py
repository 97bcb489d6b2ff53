"""ga, graddiff, npo and ssiuu on both benchmarks, three seeds: `python benchmarks/first_look.py --runs FOLDER`.

Runs what is not yet in FOLDER, keeps each run's record in docs/results/records/first_look/, and writes
docs/results/first_look.md and .json from those records alone (`--tables` does only that).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import defaultdict
from pathlib import Path
from shutil import copyfile
from statistics import fmean, stdev

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from expunge.console import Bars
from expunge.pipeline import run_all
from expunge.recipe import Recipe
from expunge.report.record import Attack, Record
from expunge.unlearning.methods import METHODS
from expunge.unlearning.transforms.attribution import AttributionPenalty

RESULTS = Path(__file__).parent.parent / "docs" / "results"
RECORDS = RESULTS / "records" / "first_look"
LOOKED_AT = ("ga", "graddiff", "npo", "ssiuu")
SEEDS = (0, 1, 2)
ATTACK = {"max_steps": 16, "eval_every": 4, "learning_rates": [2e-5, 5e-5]}
TINY_ATTACK = {"max_steps": 24, "eval_every": 2, "learning_rates": [5e-4, 1e-3, 2e-3]}
BENCHMARKS = {
    "people": {
        "model": "trained",
        "unlearn": {"learning_rate": 5e-4},
        "attacks": {"relearn-harmful": TINY_ATTACK, "relearn-related": TINY_ATTACK},
    },
    "world_facts": {
        "model": "smollm2",
        "unlearn": {"learning_rate": 2e-5},
        "attacks": {"relearn-harmful": ATTACK, "relearn-related": ATTACK},
    },
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % points of Student's t with n - 1 degrees of freedom."""


def run(folder: Path, benchmark: str) -> None:
    """All methods and seeds of one benchmark; finished runs are kept."""
    with Bars().shown() as progress:
        for seed in SEEDS:
            recipes = [
                Recipe.of(
                    {
                        **BENCHMARKS[benchmark],
                        "data": {"benchmark": benchmark, "seed": seed},
                        "method": method,
                        "seed": seed,
                        "output": str(folder / f"{benchmark}-{method}-{seed}"),
                    },
                    "first_look",
                )
                for method in LOOKED_AT
            ]
            missing = [recipe for recipe in recipes if not (RECORDS / _file(recipe)).is_file()]
            for recipe, record in zip(missing, run_all(missing, progress), strict=True):
                RECORDS.mkdir(parents=True, exist_ok=True)
                (RECORDS / _file(recipe)).write_text(record.dumps(), encoding="utf-8")
                if method_has_penalty(recipe.method):
                    copyfile(Path(recipe.output) / "metrics.jsonl", _metrics(RECORDS / _file(recipe)))


def _file(recipe: Recipe) -> str:
    return f"{recipe.data.benchmark}-{recipe.method}-{recipe.seed}.json"


def method_has_penalty(method: str) -> bool:
    """Whether the run measures the attribution penalty in its metrics, which are then kept too."""
    return any(isinstance(transform, AttributionPenalty) for transform in METHODS[method].transforms)


def _metrics(record: Path) -> Path:
    return record.with_suffix(".metrics.jsonl")


def penalty_ratios(record: Path) -> list[float]:
    """Norm of the penalty's gradient over that of the loss's, at the steps at which it was measured."""
    kept = _metrics(record)
    lines = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.is_file() else []
    return [line["attribution_gradient_ratio"] for line in lines if "attribution_gradient_ratio" in line]


def rows() -> list[dict[str, object]]:
    """One row per benchmark, method and attack, over the seeds whose records are stored."""
    groups: dict[tuple[str, str, str], list[tuple[Record, Attack]]] = defaultdict(list)
    for path in sorted(RECORDS.glob("*.json")):
        record = Record.load(path)
        for attack in record.attacks:
            groups[record.recipe.benchmark, record.recipe.method, attack.name].append((record, attack))
    return [_row(*key, pairs) for key, pairs in sorted(groups.items())]


def _row(benchmark: str, method: str, name: str, pairs: list[tuple[Record, Attack]]) -> dict[str, object]:
    records, attacks = zip(*pairs, strict=True)
    recovery = [attack.recovery for attack in attacks]
    low, high = interval(recovery)

    def mean(values: list[float]) -> float:
        return round(fmean(values), 4)

    return {
        "benchmark": benchmark,
        "model": f"{records[0].model.name}, {records[0].model.parameters:,} parameters, {records[0].model.source}",
        "method": method,
        "attack": name,
        "seeds": [record.seeds["data"] for record in records],
        "steps": [record.cost.steps for record in records],
        "forget_before": mean([r.scores.forget.before.accuracy for r in records]),
        "forget_before_log_odds": mean([r.scores.forget.before.log_odds for r in records]),
        "forget_after": mean([r.scores.forget.after.accuracy for r in records]),
        "forget_after_log_odds": mean([r.scores.forget.after.log_odds for r in records]),
        "retain_after": mean([r.scores.retain.after.accuracy for r in records]),
        "held_out_after": mean([r.scores.test.after.accuracy for r in records]),
        "attacked_accuracy": mean([a.accuracy for a in attacks]),
        "attacked_log_odds": mean([a.log_odds for a in attacks]),
        "control_accuracy": mean([a.control.accuracy for a in attacks]),
        "control_log_odds": mean([a.control.log_odds for a in attacks]),
        "chance": mean([a.chance for a in attacks]),
        "recovery": mean(recovery),
        "ci_low": round(low, 4),
        "ci_high": round(high, 4),
        "recovery_by_seed": [round(value, 4) for value in recovery],
        "rho": mean([a.rho for a in attacks if a.rho is not None]) if any(a.rho for a in attacks) else None,
        "erased": mean([r.influence.erased for r in records if r.influence]),
        "hidden": mean([r.influence.hidden for r in records if r.influence]),
        "verdicts": [record.verdict for record in records],
        "control": records[0].control.kind,
    }


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds, by Student's t."""
    if len(values) < 2:
        return math.nan, math.nan
    half = STUDENT[len(values)] * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


HEAD = """# First look: ga, graddiff, npo and ssiuu, attacked

Generated by `python benchmarks/first_look.py --tables` from `records/first_look/`; the same rows are in
[first_look.json](first_look.json). Means over seeds (each seed is another split, loop and model); recovery with its
95 % interval over seeds (Student's t). Every method stops at the same forget score, log-odds 0 within 0.25 (ignorance),
looked at every 3 steps, with the same learning rate and no tuning per method. Recovery is R on log-odds: 0 nothing came
back, 1 everything. Control: on `people` the gold model under the same attack; on `world_facts` log-odds 0 and chance
accuracy, so part of what counts as recovered there is what any model would guess after the attack.
"""


def tables() -> None:
    """Write the page and its JSON from the stored records."""
    found = rows()
    lines = [HEAD]
    for benchmark in BENCHMARKS:
        mine = [row for row in found if row["benchmark"] == benchmark]
        if not mine:
            continue
        first = mine[0]
        lines += [
            f"\n## {benchmark}\n",
            f"Model: {first['model']}. Before: accuracy {first['forget_before']:.2f}, log-odds "
            f"{first['forget_before_log_odds']:+.1f}; chance {first['chance']:.2f}; control: {first['control']}.\n",
            "| method | attack | seeds | steps | after: accuracy / log-odds | attacked: accuracy / log-odds "
            "| control | recovery | retain | held-out | rho | verdicts |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in mine]
        ratios = [r[0] for path in sorted(RECORDS.glob(f"{benchmark}-*.json")) if (r := penalty_ratios(path))]
        if ratios:
            shares = ", ".join(f"{100 * ratio:.2g} %" for ratio in ratios)
            lines += [f"\nssiuu: the penalty's gradient is {shares} of the loss's gradient (norms, step 2, by seed)."]
    (RESULTS / "first_look.md").write_text("\n".join(lines) + "\n" + _notes(), encoding="utf-8")
    (RESULTS / "first_look.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _line(row: dict[str, object]) -> str:
    rho = "" if row["rho"] is None else f"{row['rho']:.2f}"
    steps = ", ".join(map(str, row["steps"]))  # type: ignore[call-overload]
    verdicts = ", ".join(sorted(set(row["verdicts"])))  # type: ignore[call-overload]
    return (
        f"| {row['method']} | {row['attack']} | {len(row['seeds'])} | {steps} "  # type: ignore[arg-type]
        f"| {row['forget_after']:.2f} / {row['forget_after_log_odds']:+.2f} "
        f"| {row['attacked_accuracy']:.2f} / {row['attacked_log_odds']:+.2f} "
        f"| {row['control_accuracy']:.2f} / {row['control_log_odds']:+.2f} "
        f"| {row['recovery']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] "
        f"| {row['retain_after']:.2f} | {row['held_out_after']:.2f} | {rho} | {verdicts} |"
    )


def _notes() -> str:
    """What a person has to add to the numbers; kept beside them, in first_look.notes.md."""
    notes = RESULTS / "first_look.notes.md"
    return "\n" + notes.read_text(encoding="utf-8") if notes.is_file() else ""


def main() -> None:
    """Run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/first_look"), help="where the runs are kept")
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), action="append", help="all by default")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    for benchmark in [] if options.tables else options.benchmark or BENCHMARKS:
        run(options.runs, benchmark)
    tables()


if __name__ == "__main__":
    main()
