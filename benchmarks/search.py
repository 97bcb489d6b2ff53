"""Settings tried beside the rates of `benchmarks/tune.py`, on the seed that no table has.

    python benchmarks/search.py graddiff --runs FOLDER

Drawn: durable and what led to it had 26 trials on `world_facts` (Tuning in docs/results/erase_or_hide.md), the
baselines three. Here a baseline gets 26 too: its three rates, and 23 drawn from its space below, each with durable's
budget of steps. Crossed: of a projection every number of blocks with every rank. The rule is that of `tune.py`. The
trials are kept in docs/results/records/erase_or_hide/tuning_search.json; what wins of all is printed, and stands in the
recipe as METHOD_searched.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from expunge.bench.grid import run_grid
from expunge.console import Bars
from tune import GRIDS, KEPT, Choice, Trial, best, keep, outcome, stored

DRAWS = 23

Values = tuple[float, float] | list[Any]
"""Bounds of a value that is drawn evenly by its logarithm, or a list to draw from."""

_LOOP: dict[str, Values] = {
    "learning_rate": (1e-6, 2e-4),
    "max_steps": [240],
    "lr_scheduler_type": ["constant", "linear"],
    "per_device_train_batch_size": [4, 8, 16, 24],
    "weight_decay": [0.0, 0.01, 0.1],
    "warmup_steps": [0, 5, 10],
}
_RETAIN: dict[str, Values] = {"objective.retain_weight": (0.3, 30.0)}
SPACES: dict[str, dict[str, dict[str, Values]]] = {
    "graddiff": {"unlearn": _LOOP, "settings": _RETAIN},
    "npo": {"unlearn": _LOOP, "settings": {**_RETAIN, "objective.beta": (0.02, 5.0)}},
}


_BREADTH = {"n_layers": [2, 10, 0], "rank": [1, 4, 16]}
CROSSED = {"mrp": _BREADTH, "mrp_counterfactual": _BREADTH}


def drawn(method: str, n: int, seed: int = 0) -> list[dict[str, dict[str, Any]]]:
    """`n` settings of a method, as its entry in a recipe has them; numbers drawn by their logarithm to three digits."""
    random = Random(f"{method}-{seed}")
    return [
        {
            part: {name: _value(values, random) for name, values in space.items()}
            for part, space in SPACES[method].items()
        }
        for _ in range(n)
    ]


def _value(values: Values, random: Random) -> Any:
    if isinstance(values, list):
        return random.choice(values)
    return float(f"{math.exp(random.uniform(*map(math.log, values))):.3g}")


def crossed(method: str) -> list[dict[str, dict[str, Any]]]:
    """Every combination of a method's settings."""
    space = CROSSED[method]
    return [{"settings": dict(zip(space, values, strict=True))} for values in product(*space.values())]


def choices(method: str) -> dict[str, Choice]:
    """Trial -> the method, and what is laid over its entry in the recipe."""
    settings = drawn(method, DRAWS) if method in SPACES else crossed(method)
    return {f"{method}-{n}": (method, own) for n, own in enumerate(settings, start=1)}


def main() -> None:
    """Run the trials, keep them, and print what won."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=[*SPACES, *CROSSED])
    parser.add_argument("--runs", type=Path, required=True, help="where the runs and their records are kept")
    options = parser.parse_args()
    tried = choices(options.method)
    with Bars().shown() as progress:
        records = run_grid(GRIDS["world_facts"].grid(tried, options.runs), options.runs / "records", progress)
    found = {trial: outcome(own) for trial, (own,) in records.items()}
    trials: list[Trial] = [{"method": options.method, **tried[trial][1], **own} for trial, own in found.items()]
    rates = [t for t in stored(KEPT / "tuning_rates_world_facts.json") if t["method"] == options.method]
    won = best([*rates, *trials])
    keep(KEPT / "tuning_search.json", [{**trial, "chosen": trial is won} for trial in trials])
    print(json.dumps(won, indent=1))


if __name__ == "__main__":
    main()
