"""The report's charts: each takes parts of a record and the limits shared by all records, and gives a figure.

The grammar is the same in all: ink before, blue after unlearning, orange after an attack, dashes for chance, a diamond
for the control. Series are named where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from expunge.report.canvas import SMALL, WIDTH, sheet
from expunge.report.grammar import (
    AFTER,
    ATTACK,
    BEFORE,
    CHANCE,
    DASH,
    INK,
    MUTED,
    RATES,
    ROW,
    End,
    Limits,
    band,
    dashes,
    gutter,
    level,
    name_ends,
    rows,
    scale,
    value,
    whisker,
)
from expunge.report.record import Attack, Influence, LogitLens, Probe, Score, Training
from expunge.report.theme import HEAT, LEVELS, STAND_IN
from expunge.report.words import plain, tick


@dataclass(frozen=True)
class Bar:
    """One level with its bounds; `role` is before, after or attack; `control` is what the control reaches."""

    name: str
    role: str
    value: float
    low: float | None = None
    high: float | None = None
    control: float | None = None


@dataclass(frozen=True)
class Pair:
    """One test group before and after, and what a guess scores; a head row has a name only."""

    name: str
    before: float | None = None
    after: float | None = None
    chance: float = 0.0


def levels(bars: Sequence[Bar], limits: Limits, guess: float, guess_name: str, show: Callable[[float], str]) -> Figure:
    """Horizontal bars from `guess`' side of zero, whiskers, the guess line, and the control's diamonds."""
    height = ROW * len(bars) + 34
    figure, (axes,) = sheet(height, (gutter([b.name for b in bars]), 18, WIDTH - 38, height - 16))
    colour = {"before": BEFORE, "after": AFTER, "attack": ATTACK}
    for i, bar in enumerate(bars):
        axes.barh(i, bar.value, height=0.56, color=colour[bar.role], linewidth=0)
        if bar.low is not None and bar.high is not None:
            whisker(axes, bar.low, bar.high, i)
        if bar.control is not None:
            axes.plot([bar.control], [i], marker="D", markersize=5, color=STAND_IN["surface"], markeredgecolor=INK)
        value(axes, i, show(bar.value), colour[bar.role])
    axes.axvline(guess, color=CHANCE, linewidth=1.2, linestyle=DASH)
    if guess != 0:
        axes.axvline(0, color=STAND_IN["line"], linewidth=1.0, zorder=0)
    axes.annotate(guess_name, (guess, 1), (0, 5), ("data", "axes fraction"), "offset points",
                  ha="center", color=MUTED, size=SMALL)  # fmt: skip
    rows(axes, [b.name for b in bars])
    scale(axes, limits, show)
    return figure


def dots(pairs: Sequence[Pair], limits: Limits, show: Callable[[float], str]) -> Figure:
    """Dumbbells from before (ring) to after (dot), a tick where a guess would be; heads split the rows."""
    height = ROW * len(pairs) + 26
    names = [p.name for p in pairs if p.before is not None]
    figure, (axes,) = sheet(height, (gutter(names), 18, WIDTH - 38, height - 4))
    for i, pair in enumerate(pairs):
        if pair.before is None or pair.after is None:
            axes.annotate(pair.name, (0, i), (4 - gutter(names), -1), ("axes fraction", "data"), "offset points",
                          va="center", color=INK, weight="bold", size=SMALL)  # fmt: skip
            continue
        axes.plot([pair.chance] * 2, [i - 0.32, i + 0.32], color=CHANCE, linewidth=1.2, linestyle=(0, (2, 1.5)))
        axes.plot([pair.before, pair.after], [i, i], color=STAND_IN["line"], linewidth=2.2, zorder=1)
        axes.plot([pair.before], [i], marker="o", markersize=6.5, color=STAND_IN["surface"], markeredgecolor=BEFORE,
                  markeredgewidth=1.5)  # fmt: skip
        axes.plot([pair.after], [i], marker="o", markersize=6, color=AFTER, markeredgewidth=0)
        value(axes, i, show(pair.after), AFTER)
    rows(axes, [p.name if p.before is not None else "" for p in pairs])
    scale(axes, limits, show)
    return figure


@dataclass(frozen=True)
class Frame:
    """What all curve panels of a run have in common: scores before, chance, limits of log-odds, the last step."""

    before: Score
    chance: float
    odds: Limits
    steps: float


def relearning(attack: Attack, frame: Frame) -> Figure:
    """Log-odds above, accuracy below, against steps: one orange per learning rate, mean and range over seeds."""
    figure, upper, lower = _tall()
    ends, control = [], attack.control
    for i, rate in enumerate(sorted({p.learning_rate for p in attack.curve}, reverse=True)):
        colour = RATES[min(i, len(RATES) - 1)]
        mine = [p for p in attack.curve if p.learning_rate == rate]
        last = band(upper, [(p.step, p.log_odds) for p in mine], colour)
        band(lower, [(p.step, p.accuracy) for p in mine], colour)
        ends.append(End(last, tick(rate).replace("e−0", "e−"), ATTACK))
    if control.curve:
        ends.append(End(dashes(upper, [(p.step, p.log_odds) for p in control.curve]), "control", MUTED))
        dashes(lower, [(p.step, p.accuracy) for p in control.curve])
    else:
        ends.append(level(upper, control.log_odds, "control", CHANCE))
    _finish(upper, lower, ends, frame)
    return figure


def unlearning(training: Training, frame: Frame) -> Figure:
    """The way down: forget log-odds above, accuracy below, against the steps of the unlearning loop."""
    figure, upper, lower = _tall()
    history = training.history
    places = [p.step for p in history]
    upper.plot(places, [p.log_odds for p in history], color=AFTER, marker="o", markersize=3)
    lower.plot(places, [p.accuracy for p in history], color=AFTER, marker="o", markersize=3)
    _finish(upper, lower, [End(history[-1].log_odds, "forget", AFTER), level(upper, 0.0, "ignorance", CHANCE)], frame)
    return figure


def _tall() -> tuple[Figure, Axes, Axes]:
    """A figure with a taller panel above a lower one, and room on the right for names."""
    figure, (upper, lower) = sheet(196, (30, 86, WIDTH - 44, 186), (30, 24, WIDTH - 44, 72))
    return figure, upper, lower


def _finish(upper: Axes, lower: Axes, ends: Sequence[End], frame: Frame) -> None:
    """Common limits, levels and labels of a log-odds panel above an accuracy panel; names on their right."""
    for axes, name in ((upper, "log-odds"), (lower, "accuracy")):
        axes.set_xlim(0, frame.steps)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.annotate(name, (0, 1), (-26, 4), "axes fraction", "offset points", size=SMALL, color=MUTED)
    upper.set_ylim(frame.odds)
    upper.xaxis.set_major_formatter(NullFormatter())
    upper.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    upper.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(v)))
    lower.set_ylim(-0.04, 1.08)
    lower.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}%"))
    lower.set_xlabel("steps", labelpad=1)
    name_ends(upper, [*ends, level(upper, frame.before.log_odds, "before", BEFORE)])
    name_ends(
        lower, [level(lower, frame.chance, "chance", CHANCE), level(lower, frame.before.accuracy, "before", BEFORE)]
    )


def cumulative(influence: Influence, top: float) -> Figure:
    """Sums of the top m D+ (erased, blue) and D- (hidden, orange) against m, with a mark at `influence.top`."""
    figure, (axes,) = sheet(160, (30, 26, WIDTH - 56, 146))
    lines = ((influence.curve_plus, "erased", AFTER), (influence.curve_minus, "hidden", ATTACK))
    for values, _, colour in lines:
        axes.plot(influence.curve_m, values, color=colour)
    axes.set_xscale("log")
    axes.set_xlim(max(1, influence.curve_m[0]), influence.curve_m[-1])
    axes.set_ylim(0.0, top * 1.05)
    axes.axvline(influence.top, color=CHANCE, linewidth=1.0, linestyle=DASH, zorder=0)
    above = (influence.top, 1), (0, 3), ("data", "axes fraction"), "offset points"
    axes.annotate(f"m = {influence.top}", *above, ha="center", size=SMALL, color=MUTED)
    name_ends(axes, [End(values[-1], name, colour) for values, name, colour in lines])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(v)))
    axes.set_xlabel("neurons counted, m", labelpad=1)
    axes.grid(axis="y")
    return figure


def heat(grid: Sequence[Sequence[float]], modules: Sequence[str], top: float) -> Figure:
    """Modules by layers in equal steps of one ramp from 0 to `top`."""
    layers = len(grid[0]) if grid else 0
    height = 13.0 * len(modules) + 28
    figure, (axes,) = sheet(height, (28, 24, WIDTH - 4, height - 4))
    norm = BoundaryNorm([top * i / LEVELS for i in range(LEVELS + 1)], LEVELS, clip=True)
    axes.pcolormesh(grid, cmap=ListedColormap(HEAT), norm=norm, edgecolors=STAND_IN["surface"], linewidth=0.6)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(modules))], [plain(m) for m in modules])
    step = max(1, round(layers / 6 / 5) * 5)
    axes.set_xticks([i + 0.5 for i in range(0, layers, step)], [str(i) for i in range(0, layers, step)])
    axes.set_xlabel("layer", labelpad=1)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def lens(logit_lens: LogitLens) -> Figure:
    """Accuracy per layer before and after, with the line of a coin at one half."""
    figure, axes = _by_layer(logit_lens.before, logit_lens.after, (0, 1.04), 0.5, "chance")
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}%"))
    return figure


def probe(found: Probe, limits: Limits) -> Figure:
    """Log-odds that linear probes read in each layer before and after, with the line of ignorance."""
    figure, axes = _by_layer(found.before, found.after, limits, 0.0, "ignorance")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(v)))
    return figure


def _by_layer(
    before: Sequence[float], after: Sequence[float], limits: Limits, floor: float, floor_name: str
) -> tuple[Figure, Axes]:
    """Two lines over the layers, and the level of a model that never knew."""
    figure, (axes,) = sheet(150, (32, 26, WIDTH - 44, 142))
    lines = ((before, "before", BEFORE), (after, "after", AFTER))
    for values, _, colour in lines:
        axes.plot(range(len(values)), values, color=colour)
    ends = [*(End(values[-1], name, colour) for values, name, colour in lines), level(axes, floor, floor_name, CHANCE)]
    axes.set_xlim(0, max(1, len(before) - 1))
    axes.set_ylim(limits)
    name_ends(axes, ends)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("layer", labelpad=1)
    axes.grid(axis="y")
    return figure, axes
