"""What all charts have in common: colours by role, row labels, lines over steps, names where lines end, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.report.canvas import FONT, SMALL
from expunge.report.theme import STAND_IN
from expunge.report.words import percent, tick, visible

INK, MUTED, CHANCE = STAND_IN["ink"], STAND_IN["muted"], STAND_IN["chance"]
BEFORE, AFTER, ATTACK = STAND_IN["before"], STAND_IN["after"], STAND_IN["attack"]
RATES = (ATTACK, STAND_IN["attack2"], STAND_IN["attack3"])
ROW = 17.0
TICK = 30.0  # points that a number below the horizontal axis needs
LABEL = 22  # characters of a row label
LEADER = 14  # points from the panel to a name that a line leads to
DASH = (0, (3, 2.5))

Limits = tuple[float, float]


def padded(values: Sequence[float], share: float = 0.06) -> Limits:
    """Limits that hold all `values` and zero, with some air."""
    low, high = min([0.0, *values]), max([0.0, *values])
    air = share * ((high - low) or 1.0)
    return low - air * (low < 0), high + air


def gutter(names: Sequence[str], longest: int = LABEL) -> float:
    """Points that row labels need: the measuring font is wide, so this errs to the safe side."""
    return 12 + 4.6 * min(longest + 1, max(map(len, names), default=0))


def rows(axes: Axes, names: Sequence[str], longest: int = LABEL) -> None:
    """Row labels from top to bottom, no box."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [visible(name, longest) for name in names], fontsize=FONT)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def whisker(axes: Axes, low: float, high: float, at: float) -> None:
    """A 95 % interval across row `at`."""
    axes.plot([low, high], [at, at], color=INK, linewidth=1.0, solid_capstyle="butt")
    axes.plot([low, high], [at, at], color=INK, marker="|", markersize=4.5, linestyle="none")


def value(axes: Axes, at: float, text: str, colour: str) -> None:
    """The row's number, right of the panel."""
    axes.annotate(text, (1, at), (34, 0), ("axes fraction", "data"), "offset points", ha="right", va="center",
                  color=colour, weight="bold")  # fmt: skip


def scale(axes: Axes, limits: Limits, show: Callable[[float], str]) -> None:
    """The common horizontal axis of row charts."""
    axes.set_xlim(limits)
    room = axes.get_window_extent().width * 72 / axes.figure.dpi
    axes.xaxis.set_major_locator(MaxNLocator(max(2, min(5, int(room / TICK))), steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v) if show is percent else tick(v)))
    axes.grid(axis="x")


@dataclass(frozen=True)
class End:
    """A series' or level's name at the height where it leaves the panel.

    `leader` is the colour of a thin line from there to the name, for names that are pushed far or lines much alike.
    """

    value: float
    name: str
    colour: str
    leader: str = ""


def means(points: Sequence[tuple[int, float]]) -> list[tuple[int, list[float]]]:
    """Values at each step, in order of steps."""
    return [(step, [value for _, value in group]) for step, group in groupby(sorted(points), key=lambda p: p[0])]


def band(axes: Axes, points: Sequence[tuple[int, float]], colour: str) -> float:
    """The mean over seeds as a line and their range as a band; the mean's last value."""
    table = means(points)
    steps = [step for step, _ in table]
    mean = [sum(values) / len(values) for _, values in table]
    low, high = [min(values) for _, values in table], [max(values) for _, values in table]
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=colour)
    return mean[-1]


def dashes(axes: Axes, points: Sequence[tuple[int, float]]) -> float:
    """The control's mean over seeds, dashed; its last value."""
    table = means(points)
    mean = [sum(values) / len(values) for _, values in table]
    axes.plot([step for step, _ in table], mean, color=CHANCE, linestyle=DASH)
    return mean[-1]


def level(axes: Axes, value: float, name: str, colour: str) -> End:
    """A level across the panel: solid for what was measured, dashed for chance and control; and its name's place."""
    axes.axhline(value, color=colour, linewidth=1.2, linestyle="-" if colour == BEFORE else DASH, zorder=1)
    return End(value, name, colour if colour == BEFORE else MUTED)


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names right of the panel where their lines end, pushed apart where they would touch."""
    points = axes.bbox.height * 72 / axes.figure.dpi
    share = axes.transScale + axes.transLimits
    wanted = [float(share.transform((1.0, end.value))[1]) * points for end in ends]
    for start, height, end in zip(wanted, spread(wanted, SMALL + 1.2, points), ends, strict=True):
        font: dict[str, Any] = {"va": "center", "size": SMALL, "color": end.colour, "annotation_clip": False}
        if end.leader:
            line = {"arrowstyle": "-", "color": end.leader, "linewidth": 0.7, "relpos": (0, 0.5)}
            axes.annotate(end.name, (1, start / points), (LEADER, height - start), "axes fraction", "offset points",
                          {**line, "shrinkA": 1, "shrinkB": 0}, **font)  # fmt: skip
        else:
            axes.annotate(end.name, (1, 0), (4, height), "axes fraction", "offset points", **font)


def spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """`heights` moved as little as possible (least squares) so that no two are closer than `gap`, then under `top`.

    The order is kept. Subtracting i * gap turns the gaps into monotony, which pooling adjacent violators restores.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    pools: list[list[float]] = []
    for i, place in enumerate(order):
        pools.append([heights[place] - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [fmean(pool) for pool in pools for _ in pool]
    ceiling = top - (len(order) - 1) * gap
    moved = {place: min(level[i], ceiling) + i * gap for i, place in enumerate(order)}
    return [moved[place] for place in range(len(heights))]
