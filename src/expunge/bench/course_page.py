"""What courses leave beside their records: table, rows, and the picture of every request's score over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expunge.bench.courses import Courses, course_rows, course_table, dump_course_rows, first_course, twin_table
from expunge.bench.standings import by_accuracy, moments, standing, unit
from expunge.continual.record import HELD_OUT, RETAIN, Course, Moment
from expunge.models.checkpoint import atomic_write_text
from expunge.report.canvas import painted, save
from expunge.report.grammar import End, name_ends
from expunge.report.theme import HEAT_LIGHT, LIGHT

COLUMNS = 4
LINES = tuple(LIGHT[name] for name in ("attack", "after", "before", "attack3"))
"""Colours of the first methods of a table where all stand in one panel; those after them are grey."""

HIGHEST = 1e6
"""Perplexity that is drawn: a model that says nothing has the largest number there is."""


def write_course_page(folder: Path, courses: Courses) -> tuple[Path, ...]:
    """Write table.md, table.json, course.svg and kept.svg into `folder`, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(filter(None, (course_table(courses), twin_table(courses))))
    texts = {"table.md": tables + "\n", "table.json": dump_course_rows(course_rows(courses))}
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
        figure = Figure(figsize=(4.4 * len(kinds), 2.6), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        ends: list[list[End]] = []
        for axes, (title, of) in zip(panels, kinds.items(), strict=True):
            ends.append([])
            for place, (method, own) in enumerate(courses.items()):
                colour = LINES[place] if place < len(LINES) else LIGHT["chance"]
                line = _over_time(own, of)
                axes.plot(range(len(line)), line, color=colour)
                ends[-1].append(End(line[-1], method, colour))
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
    """One panel per method: how requests, what must stay and made-up subjects stand over time; means over seeds."""
    told = unit(first_course(courses)) + ("" if by_accuracy(first_course(courses)) else ", nats per token")
    with painted(LIGHT):
        columns = min(COLUMNS, len(courses))
        lines = -(-len(courses) // columns)
        figure = Figure(figsize=(2.6 * columns, 2.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(courses) :]:
            axes.set_visible(False)
        for axes, (method, own) in zip(panels, courses.items(), strict=False):
            _panel(axes, method, own)
        for axes in panels[: len(courses) : columns]:
            axes.set_ylabel(told)
        for axes in panels[max(0, len(courses) - columns) : len(courses)]:
            axes.set_xlabel("requests carried out")
            axes.tick_params(labelbottom=True)
        save(figure, path)


def _panel(axes: Axes, method: str, own: Sequence[Course]) -> None:
    requests = [moment.request for moment in own[0].after]
    steps = range(len(requests) + 1)
    ramp = HEAT_LIGHT[len(HEAT_LIGHT) // 3 :]
    for place, name in enumerate(requests):
        colour = ramp[round(place * (len(ramp) - 1) / max(1, len(requests) - 1))]
        odds = _over_time(own, partial(_standing, name))
        axes.plot(steps, odds, color=colour, linewidth=1.3)
        axes.plot([place + 1], [odds[place + 1]], marker="o", markersize=3.5, color=colour)
    axes.plot(
        steps,
        _over_time(own, partial(_standing, HELD_OUT)),
        color=LIGHT["before"],
        linewidth=1.6,
        linestyle=(0, (5, 2)),
    )
    if all(moment.twins for course in own for moment in moments(course)):
        axes.plot(steps, _over_time(own, _made_up), color=LIGHT["attack"], linewidth=1.3, linestyle=(0, (1, 1.5)))
    axes.axhline(0, color=LIGHT["chance"], linewidth=1.0, linestyle=(0, (3, 2.5)))
    axes.set_title(method, fontsize=9, loc="left", color=LIGHT["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


def _standing(name: str, course: Course, moment: Moment) -> float:
    return standing(course, moment.sets[name])


def _made_up(course: Course, moment: Moment) -> float:
    """Mean over the made-up twins of all requests."""
    return fmean(twinned.made_up for twinned in moment.twins.values())


def _over_time(own: Sequence[Course], of: Callable[[Course, Moment], float]) -> list[float]:
    """A score at the start and after every request, mean over courses."""
    return [fmean(map(of, own, each)) for each in zip(*map(moments, own), strict=True)]
