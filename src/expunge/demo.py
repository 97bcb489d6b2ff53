"""Real facts, a real model, two methods, the attacks, one page: what `expunge demo` does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import JustifyMethod
from rich.table import Table

from expunge import pipeline
from expunge.models.memory import peak_bytes
from expunge.progress import Progress, Silent
from expunge.recipe import Recipe
from expunge.report.record import Record

METHODS = ("graddiff", "ssiuu")

REAL = {
    "model": "smollm2",
    "data": {"benchmark": "world_facts", "settings": {"n_forget": 24}},
    "attacks": {
        "relearn-harmful": {"learning_rates": [2e-5, 5e-5], "max_steps": 16, "eval_every": 4},
        "relearn-related": {"learning_rates": [2e-5, 5e-5], "max_steps": 16, "eval_every": 4},
        "relearn-benign": {"learning_rates": [2e-5], "max_steps": 8, "eval_every": 4},
    },
}
TINY = {
    "model": "trained",
    "data": {"benchmark": "people"},
    "unlearn": {"learning_rate": 5e-4},
    "attacks": {
        "relearn-harmful": {"learning_rates": [5e-4, 2e-3], "max_steps": 24},
        "relearn-related": {"learning_rates": [5e-4, 2e-3], "max_steps": 24},
    },
}


@dataclass(frozen=True)
class Outcome:
    """What the demo leaves: one record a method, the page that compares them, and the price."""

    records: tuple[Record, ...]
    report: Path
    seconds: float
    peak_bytes: int


def run(*, tiny: bool, output: Path | None = None, progress: Progress | None = None) -> Outcome:
    """Unlearn with each of `METHODS`, attack, audit, compare. An interrupted demo goes on where it stopped."""
    progress = progress or Silent()
    start = time.perf_counter()
    folder = output or _fresh(Path("runs") / ("demo-tiny" if tiny else "demo"))
    recipes = [
        Recipe.of({**(TINY if tiny else REAL), "method": method, "output": str(folder / method)}, "demo")
        for method in METHODS
    ]
    records = pipeline.run_all(recipes, progress=progress)
    page = pipeline.report([folder / method for method in METHODS], folder / "report.html")
    return Outcome(tuple(records), page, time.perf_counter() - start, peak_bytes())


def _fresh(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3 ... that holds no finished demo."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2)))
    return next(name for name in names if not (name / "report.html").exists())


def table(records: Sequence[Record]) -> Table:
    """One row a method: forget and held-out scores, the strongest attack, the verdict."""
    shown = Table(
        title="accuracy (log-odds) of the right answer; chance in brackets at the top", box=None, pad_edge=False
    )
    chance = records[0].scores.forget.before.chance
    for column in ("method", "before", "after", f"after attack [{chance:.2f}]", "retained", "recovery", "verdict"):
        justify: JustifyMethod = "left" if column in ("method", "verdict") else "right"
        shown.add_column(column, justify=justify, no_wrap=column in ("recovery", "verdict"))
    for record in records:
        forget, retain = record.scores.forget, record.scores.retain
        worst = record.strongest
        assert worst is not None
        shown.add_row(
            record.recipe.method,
            f"{forget.before.accuracy:.2f} ({forget.before.log_odds:+.1f})",
            f"{forget.after.accuracy:.2f} ({forget.after.log_odds:+.1f})",
            f"{worst.accuracy:.2f} ({worst.log_odds:+.1f})",
            f"{retain.before.accuracy:.2f} -> {retain.after.accuracy:.2f}",
            f"{worst.recovery:.2f}",
            record.verdict,
        )
    return shown
