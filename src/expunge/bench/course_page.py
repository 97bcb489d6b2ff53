"""What courses leave beside their records: table, rows, and the picture of every request's score over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expunge.bench.courses import Courses, course_rows, course_table, dump_course_rows, first_course, twin_table
from expunge.bench.standings import by_accuracy, moments, standing, unit
from expunge.continual.record import HELD_OUT, RETAIN, Course, Moment
from expunge.models.checkpoint import atomic_write_text
from expunge.report.canvas import SMALL, painted, save
from expunge.report.grammar import End, name_ends
from expunge.report.theme import HEAT_LIGHT, LIGHT

COLUMNS, COLUMNS_NAMED = 4, 3
"""Panels side by side at most; fewer where names stand between them."""

FEW = 5
"""Requests that have room for their names."""

LINES = tuple(LIGHT[name] for name in ("attack", "after", "before", "attack3"))
"""Colours of the first methods of a table where all stand in one panel; those after them are grey."""

KEY_WIDTH = 2.0
"""Inches of one name in the key."""

_DONE: Final[dict[str, Any]] = {"color": HEAT_LIGHT[-3], "linestyle": "none", "marker": "o", "markersize": 3.5}
_ZERO: Final[dict[str, Any]] = {"color": LIGHT["chance"], "linewidth": 1.0, "linestyle": (0, (3, 2.5))}
_STAYS: Final[dict[str, Any]] = {"color": LIGHT["before"], "linewidth": 1.6, "linestyle": (0, (5, 2))}
_MADE_UP: Final[dict[str, Any]] = {"color": LIGHT["attack"], "linewidth": 1.3, "linestyle": (0, (1, 1.5))}
_GOLD: Final[dict[str, Any]] = {"color": LIGHT["after"], "linewidth": 1.3, "linestyle": (0, (1, 1.5))}

HIGHEST = 1e6
"""Perplexity that is drawn: a model that says nothing has the largest number there is."""


def write_course_page(folder: Path, courses: Courses) -> tuple[Path, ...]:
    """Write table.md, table.json, table_relearnt.json, course.svg and kept.svg into `folder`, and say where they
    are."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(filter(None, (course_table(courses), twin_table(courses))))
    rows, attacked = dump_course_rows(course_rows(courses))
    texts = {"table.md": tables + "\n", "table.json": rows, "table_relearnt.json": attacked}
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    draw_courses(folder / "course.svg", courses)
    draw_kept(folder / "kept.svg", courses)
    return tuple(folder / name for name in (*texts, "course.svg", "kept.svg"))


def draw_kept(path: Path, courses: Courses) -> None:
    """What stays, request after request: accuracy of retained and of held-out questions, perplexity; one line a method.

    Means over seeds.
    """
    kinds: dict[str, Callable[[Course, Moment], float]] = {
        "retained, accuracy": lambda _, moment: moment.sets[RETAIN].accuracy,
        "held out, accuracy": lambda _, moment: moment.sets[HELD_OUT].accuracy,
        "plain text, perplexity": lambda _, moment: min(moment.perplexity, HIGHEST),
    }
    with painted(LIGHT):
        height = max(2.6, 0.9 + len(courses) * (SMALL + 1.2) / 72)
        figure = Figure(figsize=(4.4 * len(kinds), height), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        ends: list[list[End]] = []
        for axes, (title, of) in zip(panels, kinds.items(), strict=True):
            ends.append([])
            for place, (method, own) in enumerate(courses.items()):
                colour = LINES[place] if place < len(LINES) else LIGHT["chance"]
                line = _over_time(own, of)
                axes.plot(range(len(line)), line, color=colour)
                ends[-1].append(End(line[-1], method, colour, leader=colour))
            if title.startswith("plain"):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(MaxNLocator(5) if _narrow(axes) else LogLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(title, fontsize=9, loc="left", color=LIGHT["ink"])
            axes.set_xlabel("requests carried out")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.margins(x=0, y=0.1)
        figure.draw_without_rendering()
        for axes, own_ends in zip(panels, ends, strict=True):
            name_ends(axes, own_ends)
        save(figure, path)


def _narrow(axes: Axes) -> bool:
    """Whether less than a decade is shown."""
    low, high = axes.get_ylim()
    return high < 10 * low


def draw_courses(path: Path, courses: Courses) -> None:
    """One panel per method: how requests, held-out facts, made-up subjects and gold models stand over time; means over
    seeds. A few requests are named where their lines end, many by a key of their order."""
    first = first_course(courses)
    told = unit(first) + ("" if by_accuracy(first) else ", nats per token")
    few = len(first.after) <= FEW
    with painted(LIGHT):
        lines = -(-len(courses) // (COLUMNS_NAMED if few else COLUMNS))
        columns = -(-len(courses) // lines)
        width = (3.3 if few else 2.6) * columns
        handles, names = _key(courses)
        beside = max(1, int(width / KEY_WIDTH))
        figure = Figure(figsize=(width, 2.2 * lines + 0.2 * -(-len(names) // beside)), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(courses) :]:
            axes.set_visible(False)
        ends = [_panel(axes, method, own) for axes, (method, own) in zip(panels, courses.items(), strict=False)]
        for axes in panels[: len(courses) : columns]:
            axes.set_ylabel(told)
        for axes in panels[max(0, len(courses) - columns) : len(courses)]:
            axes.set_xlabel("requests carried out")
            axes.tick_params(labelbottom=True)
        figure.legend(
            handles, names, loc="outside upper left", ncols=beside, frameon=False, fontsize=SMALL,
            labelcolor=LIGHT["muted"], handlelength=2.6, handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        )  # fmt: skip
        figure.draw_without_rendering()
        for axes, own_ends in zip(panels, ends if few else (), strict=False):
            name_ends(axes, own_ends)
        save(figure, path)


def course_caption(courses: Courses) -> str:
    """What that picture shows, in words."""
    shown = ["each request over time (dots: when it was carried out)", "held-out facts (dashed)"]
    if any(map(_asks_twins, courses.values())):
        shown.append("made-up subjects (dotted)")
    if any(map(_has_gold, courses.values())):
        shown.append(
            "gold models that never knew the requests carried out (dotted: below these, above what is held out)"
        )
    return f"{unit(first_course(courses)).capitalize()} of {', of '.join(shown)}"


def _panel(axes: Axes, method: str, own: Sequence[Course]) -> list[End]:
    """Draw one method's courses; where its requests end, and their names."""
    requests = [moment.request for moment in own[0].after]
    steps = range(len(requests) + 1)
    ends = []
    for place, (name, colour) in enumerate(zip(requests, _in_order(len(requests)), strict=True)):
        odds = _over_time(own, partial(_standing, name))
        axes.plot(steps, odds, color=colour, linewidth=1.3)
        axes.plot([place + 1], [odds[place + 1]], marker="o", markersize=3.5, color=colour, clip_on=False)
        ends.append(End(odds[-1], name.replace("_", " "), LIGHT["muted"], leader=colour))
    axes.plot(steps, _over_time(own, partial(_standing, HELD_OUT)), **_STAYS)
    if _asks_twins(own):
        axes.plot(steps, _over_time(own, _made_up), **_MADE_UP)
    if _has_gold(own):
        for names in (lambda so_far: so_far, lambda _: [HELD_OUT]):
            axes.plot(steps[1:], [_gold(own, number, names(requests[:number])) for number in steps[1:]], **_GOLD)
    axes.axhline(0, **_ZERO)
    axes.set_title(method, fontsize=9, loc="left", color=LIGHT["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(-0.02 * len(requests), len(requests))
    return ends


def _key(courses: Courses) -> tuple[list[Any], list[str]]:
    """Handles and names of what all panels have in common."""
    requests = [moment.request for moment in first_course(courses).after]
    handles: list[Any] = []
    names = []
    if len(requests) > FEW:
        handles.append(tuple(Line2D([], [], color=colour, linewidth=3) for colour in _in_order(len(requests))))
        names.append(f"requests, the first ({requests[0]}) to the last ({requests[-1]})")
    for style, name, there in (
        (_DONE, "when carried out", True),
        (_STAYS, "held out", True),
        (_MADE_UP, "made-up subjects", any(map(_asks_twins, courses.values()))),
        (_GOLD, "gold model (above: held out)", any(map(_has_gold, courses.values()))),
        (_ZERO, "chance" if by_accuracy(first_course(courses)) else "ignorance", True),
    ):
        if there:
            handles.append(Line2D([], [], **style))
            names.append(name)
    return handles, names


def _in_order(n: int) -> list[str]:
    """Colours of `n` requests, the first one the lightest."""
    ramp = LinearSegmentedColormap.from_list("order", HEAT_LIGHT[len(HEAT_LIGHT) // 3 :])
    return [to_hex(ramp(place / max(1, n - 1))) for place in range(n)]


def _asks_twins(own: Sequence[Course]) -> bool:
    return all(moment.twins for course in own for moment in moments(course))


def _has_gold(own: Sequence[Course]) -> bool:
    return all(course.gold for course in own)


def _standing(name: str, course: Course, moment: Moment) -> float:
    return standing(course, moment.sets[name])


def _gold(own: Sequence[Course], number: int, names: Sequence[str]) -> float:
    """Of the sets `names` in the models that never knew the first `number` requests."""
    return fmean(_standing(name, course, course.gold[number - 1]) for course in own for name in names)


def _made_up(course: Course, moment: Moment) -> float:
    """Mean over the made-up twins of all requests."""
    return fmean(twinned.made_up for twinned in moment.twins.values())


def _over_time(own: Sequence[Course], of: Callable[[Course, Moment], float]) -> list[float]:
    """A score at the start and after every request, mean over courses."""
    return [fmean(map(of, own, each)) for each in zip(*map(moments, own), strict=True)]
