"""Several runs in one table: a row a run, a column a measure, each cell with the value by which it is sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from expunge.report.figures import Labelled
from expunge.report.record import NO_CONTROL, SHOULD_STAY, Change, Record
from expunge.report.view import interval
from expunge.report.words import NONE, duration, number, percent, plain, signed, visible

OVERREACH = "same_answer"
LEAST_MARGIN = 0.1
"""A set whose accuracy was not this far above chance before cannot tell what was lost."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands among the others; dominated: another one lets less come back and keeps as much, or as little
    and keeps more."""

    place: int
    label: str
    verdict: str
    recovery: float | None
    retention: float | None
    dominated: bool = False


@dataclass(frozen=True)
class Cell:
    """What is shown, its class on the page, and what it is sorted by: a number, or the text itself; "" comes last."""

    text: str
    kind: str = ""
    number: str = ""

    @property
    def value(self) -> str:
        """What it is sorted by."""
        return self.number or (self.text if self.text != NONE else "")


@dataclass(frozen=True)
class Line:
    """A run's row."""

    place: int
    label: str
    verdict: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """The table: heads of its columns after the run's name and verdict, and its rows."""

    heads: tuple[str, ...]
    lines: tuple[Line, ...]


def retention(record: Record) -> float | None:
    """Share of the accuracy above chance that is left, of the set that had to stay and lost most.

    Facts with the same answers are not among these sets: losing them is overreach, which the verdict tells of.
    """
    groups = record.scores.groups
    stay = [record.scores.retain, *(groups[name] for name in SHOULD_STAY if name in groups and name != OVERREACH)]
    sets = stay if groups else [*stay, record.scores.test]
    return min((kept for change in sets if (kept := _kept(change)) is not None), default=None)


def _kept(change: Change) -> float | None:
    """(accuracy after - chance) / (before - chance); None where there was hardly any margin, or nothing measured."""
    before, after = change.before, change.after
    margin = before.accuracy - before.chance
    return (after.accuracy - before.chance) / margin if before.n and after.n and margin >= LEAST_MARGIN else None


def standings(runs: Sequence[Labelled]) -> tuple[Standing, ...]:
    """Every run's recovery under its strongest attack and what it kept, and whether another one dominates it."""
    found = [
        Standing(place, run.label, run.record.verdict, _recovery(run.record), retention(run.record))
        for place, run in enumerate(runs)
    ]
    return tuple(replace(one, dominated=any(_dominates(other, one) for other in found)) for one in found)


def _dominates(better: Standing, worse: Standing) -> bool:
    if better.recovery is None or better.retention is None or worse.recovery is None or worse.retention is None:
        return False
    as_good = better.recovery <= worse.recovery and better.retention >= worse.retention
    return as_good and (better.recovery, better.retention) != (worse.recovery, worse.retention)


def _recovery(record: Record) -> float | None:
    """R under the strongest attack; None where no attack was run or R means nothing."""
    strongest = record.strongest
    return None if strongest is None or not strongest.known else strongest.recovery


def comparison(runs: Sequence[Labelled]) -> Comparison:
    """The table; columns that no run fills are left out, and those of `DIFFERING` where all runs are alike."""
    columns = [(head, [make(run.record) for run in runs]) for head, make in COLUMNS]
    shown = [(head, cells) for head, cells in columns if any(cell.text != NONE for cell in cells)]
    shown = [(head, cells) for head, cells in shown if head not in DIFFERING or len({c.text for c in cells}) > 1]
    lines = tuple(
        Line(i, run.label, run.record.verdict, tuple(cells[i] for _, cells in shown)) for i, run in enumerate(runs)
    )
    return Comparison(tuple(head for head, _ in shown), lines)


def _numeric(value: float | None, show: Callable[[float], str]) -> Cell:
    return Cell(NONE) if value is None else Cell(show(value), "figure", f"{value:.6g}")


def _strongest(record: Record) -> Cell:
    return Cell(plain(record.strongest.name) if record.strongest else NONE)


def _came_back(record: Record) -> Cell:
    value, attack = _recovery(record), record.strongest
    bounds = interval(attack) if attack else ""
    return _numeric(value, lambda v: percent(v) + (f" ({bounds})" if bounds else ""))


def _stayed(record: Record) -> Cell:
    return _numeric(retention(record), percent)


def _measured(change: Change, value: float, show: Callable[[float], str]) -> Cell:
    return _numeric(value if change.after.n else None, show)


def _perplexity(record: Record) -> Cell:
    before, after = record.text.perplexity_before, record.text.perplexity_after
    return _numeric(after / before if before and after else None, lambda v: f"{number(v)} ×")


def _why(record: Record) -> Cell:
    return Cell(visible(next(iter(record.verdict_details.reasons), NONE)), kind="why")


DIFFERING = ("model", "data", "control", "attacks")
COLUMNS: tuple[tuple[str, Callable[[Record], Cell]], ...] = (
    ("model", lambda r: Cell(visible(r.model.name, 60))),
    ("data", lambda r: Cell(plain(r.recipe.benchmark or r.name or NONE))),
    ("control", lambda r: Cell("ignorance" if r.control.kind == NO_CONTROL else r.control.kind)),
    ("came back (95 %)", _came_back),
    ("strongest attack", _strongest),
    ("attacks", lambda r: _numeric(len(r.attacks), lambda v: f"{v:.0f}")),
    ("stayed", _stayed),
    ("forget accuracy", lambda r: _measured(r.scores.forget, r.scores.forget.after.accuracy, percent)),
    ("forget log-odds", lambda r: _measured(r.scores.forget, r.scores.forget.after.log_odds, signed)),
    ("retain", lambda r: _measured(r.scores.retain, r.scores.retain.after.accuracy, percent)),
    ("test", lambda r: _measured(r.scores.test, r.scores.test.after.accuracy, percent)),
    ("perplexity", _perplexity),
    ("time", lambda r: _numeric(r.cost.seconds, duration)),
    ("why", _why),
)
