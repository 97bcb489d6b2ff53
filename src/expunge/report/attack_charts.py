"""Charts of what came back: recovery per attack, recovery against effort, variants tried, and one run against another.

As everywhere: orange after an attack, blue after unlearning, dashes for the control. Grey ground is where the rule of
the verdict decides neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from expunge.report.canvas import FONT, SMALL, WIDTH, sheet
from expunge.report.comeback import Moment
from expunge.report.grammar import (
    AFTER,
    ATTACK,
    CHANCE,
    DASH,
    INK,
    MUTED,
    RATES,
    ROW,
    End,
    Limits,
    gutter,
    level,
    name_ends,
    rows,
    scale,
    value,
    whisker,
)
from expunge.report.placing import Box, place
from expunge.report.theme import STAND_IN
from expunge.report.words import percent, visible

VARIANT = 31  # characters of a variant's name
NAME = 15  # characters of a line's name
POINT = 18  # characters of a point's name
FEW = 8  # points that fit into a chart of the common width
VERDICTS = {"ERASED": AFTER, "HIDDEN": ATTACK, "NOT FORGOTTEN": ATTACK}


@dataclass(frozen=True)
class Dot:
    """Recovery under one attack or of one variant; hollow where it decides nothing; `original`: the original there."""

    name: str
    recovery: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    original: float | None = None


@dataclass(frozen=True)
class Line:
    """Recovery against examples seen under one attack."""

    name: str
    moments: Sequence[Moment]
    control: bool


@dataclass(frozen=True)
class Point:
    """One run: what an attack brought back at most, what stayed, and whether another run is better in both."""

    name: str
    verdict: str
    recovery: float
    retention: float
    dominated: bool
    key: str


def recoveries(dots: Sequence[Dot], limits: Limits, thresholds: Limits) -> Figure:
    """Recovery and its interval, row by row, against the control at 0 and the thresholds of the rule."""
    height = ROW * len(dots) + 48
    figure, (axes,) = sheet(height, (gutter([dot.name for dot in dots]), 18, WIDTH - 38, height - 28))
    hidden, erased = thresholds
    axes.axvspan(min(hidden, erased), max(hidden, erased), color=STAND_IN["grid"], linewidth=0, zorder=0)
    for place_, side, name in ((min(hidden, erased), "right", "erased ←"), (max(hidden, erased), "left", "→ hidden")):
        axes.annotate(name, (place_, 1), (0, 15), ("data", "axes fraction"), "offset points", ha=side, color=MUTED,
                      size=SMALL)  # fmt: skip
    _control(axes)
    _dots(axes, dots, ATTACK)
    rows(axes, [dot.name for dot in dots])
    scale(axes, limits, percent)
    return figure


def sweep(dots: Sequence[Dot], start: float | None, limits: Limits) -> Figure:
    """Recovery of each variant tried, row by row, from where the model stood before (blue) to where it got (orange);
    a grey bar stands where the original got.
    """
    height = ROW * len(dots) + 34
    figure, (axes,) = sheet(height, (gutter([dot.name for dot in dots], VARIANT), 18, WIDTH - 38, height - 16))
    if start is not None:
        axes.axvline(start, color=AFTER, linewidth=1.2, zorder=1)
        for i, dot in enumerate(dots):
            axes.plot([start, dot.recovery], [i, i], color=STAND_IN["line"], linewidth=2.2, zorder=1)
    _control(axes)
    for i, dot in enumerate(dots):
        if dot.original is not None:
            axes.plot([dot.original], [i], marker="|", markersize=9, markeredgewidth=2, color=MUTED,
                      clip_on=False)  # fmt: skip
    _dots(axes, dots, ATTACK)
    rows(axes, [dot.name for dot in dots], VARIANT)
    scale(axes, limits, percent)
    return figure


def _control(axes: Axes) -> None:
    """The dashed line at 0, named above the panel."""
    axes.axvline(0, color=CHANCE, linewidth=1.2, linestyle=DASH)
    axes.annotate("control", (0, 1), (0, 5), ("data", "axes fraction"), "offset points", ha="center", color=MUTED,
                  size=SMALL)  # fmt: skip


def _dots(axes: Axes, dots: Sequence[Dot], colour: str) -> None:
    """A dot, its whisker and its number in each row."""
    for i, dot in enumerate(dots):
        if dot.low is not None and dot.high is not None:
            whisker(axes, dot.low, dot.high, i)
        face = STAND_IN["surface"] if dot.hollow else colour
        axes.plot([dot.recovery], [i], marker="o", markersize=6.5, color=face, markeredgecolor=colour,
                  markeredgewidth=1.5 if dot.hollow else 0, clip_on=False)  # fmt: skip
        value(axes, i, percent(dot.recovery), MUTED if dot.hollow else colour)


def budgets(lines: Sequence[Line], limits: Limits, thresholds: Limits) -> Figure:
    """Best recovery so far against training examples seen (logarithmic, 0 at the left), one line per attack."""
    figure, (axes,) = sheet(190, (32, 26, WIDTH - 78, 180))
    axes.axhspan(min(thresholds), max(thresholds), color=STAND_IN["grid"], linewidth=0, zorder=0)
    ends = []
    for i, line in enumerate(lines):
        colour = RATES[min(i, len(RATES) - 1)]
        spent = [moment.examples for moment in line.moments]
        axes.plot(spent, [moment.recovery for moment in line.moments], color=colour, marker="o", markersize=2.5)
        ends.append(End(line.moments[-1].recovery, visible(line.name, NAME), ATTACK))
        if line.control:
            axes.plot(spent, [moment.control for moment in line.moments], color=CHANCE, linewidth=1.2, linestyle=DASH)
    if any(line.control for line in lines):
        ends.append(End(max(line.moments[-1].control for line in lines), "control", MUTED))
    else:
        ends.append(level(axes, 0.0, "control", CHANCE))
    first = min((m.examples for line in lines for m in line.moments if m.examples), default=1)
    last = max((line.moments[-1].examples for line in lines), default=first)
    axes.set_xscale("symlog", base=2, linthresh=first, linscale=0.7)
    axes.set_xlim(0, max(last, first))
    axes.set_ylim(limits)
    axes.xaxis.set_major_locator(FixedLocator(_doublings(first, last)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
    axes.set_xlabel("training examples seen", labelpad=1)
    axes.grid(axis="y")
    name_ends(axes, ends)
    return figure


def _doublings(first: int, last: int) -> list[int]:
    """0, `first`, and on by factors of two or four up to `last`: at most six marks."""
    marks, factor = [0, first], 2 if last <= 16 * first else 4
    while marks[-1] * factor <= last and len(marks) < 6:
        marks.append(marks[-1] * factor)
    return marks


def pareto(points: Sequence[Point], recovery: Limits, retention: Limits) -> Figure:
    """Retention against recovery, the best corner at the upper left; runs that another one beats in both are faint."""
    points = sorted(points, key=lambda p: p.dominated)  # those of the front are named first, and so next to their dots
    width, top = (2 * WIDTH, 300.0) if len(points) > FEW else (WIDTH, 200.0)
    box = (34.0, 28.0, width - 6, top - 18)
    figure, (axes,) = sheet(top, box, width=width)
    axes.set_xlim(recovery)
    axes.set_ylim(retention)
    across, up = box[2] - box[0], box[3] - box[1]
    spots = [
        ((p.recovery - recovery[0]) / (recovery[1] - recovery[0]) * across,
         (p.retention - retention[0]) / (retention[1] - retention[0]) * up)
        for p in points
    ]  # fmt: skip
    names = [visible(p.name, POINT) for p in points]
    texts = place(spots, [(4 + 4.2 * len(name), FONT) for name in names], (across, up))
    front = sorted((p.recovery, p.retention) for p in points if not p.dominated)
    axes.plot([r for r, _ in front], [k for _, k in front], color=STAND_IN["line"], linewidth=1.2,
              drawstyle="steps-post", zorder=1)  # fmt: skip
    for point, spot, text, name in zip(points, spots, texts, names, strict=True):
        _run(axes, point, spot, text, name)
    axes.axvline(0, color=CHANCE, linewidth=1.0, linestyle=DASH, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
    axes.set_xlabel("recovery under the strongest attack", labelpad=1)
    axes.annotate("what stayed", (0, 1), (-30, 6), "axes fraction", "offset points", size=SMALL, color=MUTED)
    axes.grid()
    return figure


def _run(axes: Axes, point: Point, spot: tuple[float, float], text: Box, name: str) -> None:
    """A run's dot and its name, with a thin line between them where they stand apart."""
    colour = VERDICTS.get(point.verdict, INK)
    here = (point.recovery, point.retention)
    apart = (text.anchor[0] - spot[0], text.anchor[1] - spot[1])
    line = {"arrowstyle": "-", "color": CHANCE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    said = axes.annotate(name, here, apart, "data", "offset points", arrowprops=line if text.away else None,
                         ha=text.side, va="center", size=SMALL, color=MUTED if point.dominated else INK,
                         gid=point.key)  # fmt: skip
    if said.arrow_patch is not None:
        said.arrow_patch.set_gid(point.key)
    axes.plot(*([v] for v in here), marker="o", markersize=6.5, gid=point.key, markeredgecolor=colour,
              color=STAND_IN["surface"] if point.dominated else colour, alpha=0.55 if point.dominated else 1.0,
              markeredgewidth=1.4)  # fmt: skip
