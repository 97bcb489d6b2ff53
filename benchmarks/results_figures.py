"""Pictures beside a results page, from its rows and records alone: recovery, curves, maps.

Two methods are coloured, the first of the table and the one that the page is about; the others are grey and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expunge.bench.rows import Row, attacked
from expunge.report.canvas import painted, save
from expunge.report.grammar import spread
from expunge.report.record import Attack, Record
from expunge.report.theme import HEAT_LIGHT, LIGHT

Records = Mapping[str, Sequence[Record]]
DRAWN = ("harmful_0.3", "related")
FIRST, ABOUT, OTHER = LIGHT["attack"], LIGHT["after"], LIGHT["chance"]


def draw(folder: Path, name: str, found: Sequence[Row], records: Records, about: str) -> list[str]:
    """Write the pictures as `folder`/`name`-*.svg; the Markdown lines that show them."""
    made: dict[str, tuple[Callable[[], Figure], str]] = {
        "recovery": (
            lambda: recovery(found, about),
            "Recovery: 0 nothing came back, 1 everything",
        ),
        "curves": (lambda: curves(records, about), "Log-odds under attack, mean over seeds, highest learning rate"),
        "maps": (
            lambda: maps(records, about),
            "Influence on the log-odds, D+ and D-, first seed",
        ),
    }
    lines = []
    with painted(LIGHT):
        for kind, (make, title) in made.items():
            path = folder / f"{name}-{kind}.svg"
            save(make(), path)
            lines.append(f"![{title}]({path.name})\n")
    return lines


def recovery(found: Sequence[Row], about: str) -> Figure:
    """One panel per attack, methods from the least recovered to the most, with intervals over seeds."""
    attacks = list(dict.fromkeys(row.attack for row in found))
    of = {(row.method, row.attack): row for row in found}
    names = list(dict.fromkeys(row.method for row in found))
    order = sorted(names, key=lambda name: fmean(of[name, a].recovery for a in attacks if (name, a) in of))
    figure, panels = _sheet(len(attacks), max(1.35, 6.6 / len(attacks)), 0.24 * len(names) + 0.5)
    for axes, attack in zip(panels, attacks, strict=True):
        for place, name in enumerate(order):
            if (name, attack) not in of:
                continue
            row, colour = of[name, attack], _colour(name, found[0].method, about)
            axes.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=1.4)
            axes.plot([row.recovery], [place], marker="o", markersize=5, color=colour)
        for level in (0, 1):
            axes.axvline(level, color=LIGHT["line"], zorder=0)
        axes.set_title(attack.replace("_", "\n", int(len(attack) > 12)), fontsize=9, loc="left", color=LIGHT["ink"])
        axes.set_xlim(-0.55, 1.75)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_yticks(range(len(order)), order if axes is panels[0] else [""] * len(order))
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def curves(records: Records, about: str) -> Figure:
    """One panel per relearning attack."""
    figure, panels = _sheet(len(DRAWN), 3.2, 2.6)
    first = next(iter(records))
    for axes, name in zip(panels, DRAWN, strict=True):
        ends = []
        for method, own in records.items():
            lines = [_hardest(attack) for _, draws in attacked(own, name) for attack in draws]
            if not lines:
                continue
            steps, mean = list(lines[0]), [fmean(line[step] for line in lines) for step in lines[0]]
            colour = _colour(method, first, about)
            axes.plot(steps, mean, color=colour, zorder=2 + (colour != OTHER))
            ends.append((mean[-1], method, colour))
        before = fmean(r.scores.forget.before.log_odds for r in next(iter(records.values())))
        axes.axhline(before, color=LIGHT["before"], linewidth=1.2)
        axes.axhline(0, color=LIGHT["chance"], linewidth=1.2, linestyle=(0, (3, 2.5)))
        ends.append((before, "before", LIGHT["before"]))
        _name(axes, ends)
        axes.set_title(name, fontsize=9, loc="left", color=LIGHT["ink"])
        axes.set_xlabel("steps of the attack")
        axes.set_ylabel("log-odds, nats per token" if axes is panels[0] else "")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0)
    return figure


def maps(records: Records, about: str) -> Figure:
    """D+ and D- of the first method and of the one that the page is about, in one scale."""
    chosen = [(name, records[name][0].influence_log_odds) for name in (next(iter(records)), about)]
    shown = [(name, found) for name, found in chosen if found is not None]
    top = max(v for _, found in shown for grid in (found.map_plus, found.map_minus) for row in grid for v in row)
    figure, panels = _sheet(4, 1.75, 1.15)
    ramp = matplotlib.colors.ListedColormap(HEAT_LIGHT)
    kinds = [(name, kind, found) for name, found in shown for kind in ("lost, D+", "gained against, D−")]
    for axes, (name, kind, found) in zip(panels, kinds, strict=True):
        axes.pcolormesh(found.map_plus if "+" in kind else found.map_minus, cmap=ramp, vmin=0, vmax=top)
        axes.invert_yaxis()
        axes.set_title(f"{name}: {kind}", fontsize=8, loc="left", color=LIGHT["ink"])
        axes.set_yticks([i + 0.5 for i in range(len(found.modules))], found.modules if axes is panels[0] else [])
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _sheet(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(columns * width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _hardest(attack: Attack) -> dict[int, float]:
    """Log-odds by step, mean over the attack's seeds, at the highest learning rate."""
    rate = max(point.learning_rate for point in attack.curve)
    own = [point for point in attack.curve if point.learning_rate == rate]
    return {p.step: fmean(q.log_odds for q in own if q.step == p.step) for p in own}


def _name(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names right of the panel where their lines end, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    points = 150.0
    wanted = [(value - low) / (high - low) * points for value, _, _ in ends]
    for height, (_, name, colour) in zip(spread(wanted, 8.5, points), ends, strict=True):
        axes.annotate(name, (1, height / points), (4, 0), "axes fraction", "offset points", va="center", size=8,
                      color=colour)  # fmt: skip


def _colour(method: str, first: str, about: str) -> str:
    return ABOUT if method == about else FIRST if method == first else OTHER
