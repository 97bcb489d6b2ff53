"""The same number of trials for every method of a grid, on a seed that no table has.

    python benchmarks/tune.py people --runs FOLDER

A trial is a learning rate: the grid's factors times the method's usual one. Of those that end within 0.5 of log-odds 0,
that with the highest mean of retain and held-out accuracy minus mean recovery wins; where none does, the nearest one.
All trials are written to docs/results/records/erase_or_hide/tuning_rates_GRID.json; the rates that win are printed,
and stand in the recipe. With `--methods` those alone are tried, and the trials of the others are left as they stand.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from expunge.bench.grid import Grid, run_grid
from expunge.console import Bars, named
from expunge.report.record import Record
from expunge.settings import merge, read_yaml

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "results" / "records" / "erase_or_hide"
SEED = 0
WITHIN = 0.5

Trial = dict[str, Any]

Choice = tuple[str, Mapping[str, Any]]
"""A method of the recipe, and what is laid over its entry there."""


@dataclass(frozen=True)
class Tuned:
    """What is tried on one grid.

    Args:
        recipe: in the folder of recipes.
        rate: that most methods usually have.
        usual: method -> its own, where it is not `rate`.
        factors: of the usual rate, one a trial.
        attacks: that every trial meets.
    """

    recipe: str
    rate: float
    usual: Mapping[str, float]
    factors: tuple[float, ...]
    attacks: Mapping[str, Mapping[str, Any]]

    def rates(self, method: str) -> list[float]:
        """Those that are tried, as short as they are written."""
        return [float(f"{factor * self.usual.get(method, self.rate):g}") for factor in self.factors]

    def trials(self, names: Sequence[str] | None, output: Path) -> tuple[dict[str, tuple[str, float]], Grid]:
        """Trial -> its method of the recipe and its rate; and the grid of them, with runs in `output`."""
        tried = names or list(read_yaml(ROOT / "recipes" / self.recipe)["methods"])
        rates = {f"{name}-{rate}": (name, rate) for name in tried for rate in self.rates(name)}
        choices = {trial: (name, {"unlearn": {"learning_rate": rate}}) for trial, (name, rate) in rates.items()}
        return rates, self.grid(choices, output)

    def grid(self, choices: Mapping[str, Choice], output: Path) -> Grid:
        """The grid of these trials, with runs in `output`."""
        tree = read_yaml(ROOT / "recipes" / self.recipe)
        methods = {
            trial: merge({"method": name, **(tree["methods"][name] or {})}, over)
            for trial, (name, over) in choices.items()
        }
        shared = {**tree, "methods": methods, "seeds": [SEED], "attacks": self.attacks, "output": str(output)}
        return Grid.of(shared, "tuning")


_RELEARN = ("relearn-harmful", "relearn-related")

GRIDS = {
    "people": Tuned(
        "people_methods.yaml",
        5e-4,
        {"mrp": 2e-2, "repselect": 2e-3, "rmu": 2e-3, "rmu_ssiuu": 2e-3},
        (0.3, 1.0, 3.0, 10.0),
        {name: {"learning_rates": [5e-4, 2e-3], "max_steps": 24} for name in _RELEARN},
    ),
    "world_facts": Tuned(
        "world_facts.yaml",
        5e-5,
        {"repselect": 1e-4, "rmu": 2e-3, "klue": 5e-4, "klue_ssiuu": 5e-4, "rmu_ssiuu": 2e-3},
        (0.1, 0.3, 1.0),
        {name: {"learning_rates": [5e-5], "max_steps": 16, "eval_every": 8} for name in _RELEARN},
    ),
}


def main() -> None:
    """Run all trials, keep them, and print what won."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=list(GRIDS), help="whose methods are tuned")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs and their records are kept")
    parser.add_argument("--methods", help="names of the recipe, with commas between; all where it is left out")
    options = parser.parse_args()
    rates, grid = GRIDS[options.grid].trials(named(options.methods), options.runs)
    with Bars().shown() as progress:
        records = run_grid(grid, options.runs / "records", progress)
    trials: list[Trial] = []
    for name, (own,) in records.items():
        method, rate = rates[name]
        trials.append({"method": method, "learning_rate": rate, **outcome(own)})
    tried = dict.fromkeys(name for name, _ in rates.values())
    won = {name: best([t for t in trials if t["method"] == name])["learning_rate"] for name in tried}
    for trial in trials:
        trial["chosen"] = trial["learning_rate"] == won[trial["method"]]
    keep(KEPT / f"tuning_rates_{options.grid}.json", trials)
    for name, rate in won.items():
        print(f"{name}: {rate:g}")


def stored(path: Path) -> list[Trial]:
    """The trials that a file keeps; none where there is no file."""
    trials: list[Trial] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return trials


def keep(path: Path, trials: Sequence[Trial]) -> None:
    """Leave these trials in a file in the place of those of the same methods; others stay as they stand."""
    made = {trial["method"] for trial in trials}
    both = [trial for trial in stored(path) if trial["method"] not in made] + list(trials)
    path.write_text(json.dumps(both, indent=1) + "\n", encoding="utf-8")


def best(trials: Sequence[Trial]) -> Trial:
    """The trial that wins, by the rule above."""
    ignorant = [trial for trial in trials if abs(trial["log_odds"]) <= WITHIN]
    if not ignorant:
        return min(trials, key=lambda trial: abs(trial["log_odds"]))
    return max(ignorant, key=lambda t: (t["retain"] + t["held_out"]) / 2 - t["recovery"])


def outcome(record: Record) -> Trial:
    """What the rule looks at, and the steps that were made."""
    after = record.scores.forget.after
    return {
        "steps": record.cost.steps,
        "accuracy": after.accuracy,
        "log_odds": after.log_odds,
        "retain": record.scores.retain.after.accuracy,
        "held_out": record.scores.test.after.accuracy,
        "recovery": round(fmean(attack.recovery for attack in record.attacks), 4),
    }


if __name__ == "__main__":
    main()
