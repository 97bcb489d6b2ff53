"""What courses leave beside their records: table, rows, and the picture of every request's score over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expunge.bench.courses import Courses, course_rows, course_table, dump_course_rows, first_course, twin_table
from expunge.bench.standings import by_accuracy, moments, standing, unit
from expunge.continual.record import HELD_OUT, Course
from expunge.models.checkpoint import atomic_write_text
from expunge.report.canvas import painted, save
from expunge.report.theme import HEAT_LIGHT, LIGHT

COLUMNS = 4


def write_course_page(folder: Path, courses: Courses) -> tuple[Path, ...]:
    """Write table.md, table.json and course.svg into `folder`, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(filter(None, (course_table(courses), twin_table(courses))))
    texts = {"table.md": tables + "\n", "table.json": dump_course_rows(course_rows(courses))}
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    draw_courses(folder / "course.svg", courses)
    return (*(folder / name for name in texts), folder / "course.svg")


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
        odds = _over_time(own, name)
        axes.plot(steps, odds, color=colour, linewidth=1.3)
        axes.plot([place + 1], [odds[place + 1]], marker="o", markersize=3.5, color=colour)
    axes.plot(steps, _over_time(own, HELD_OUT), color=LIGHT["before"], linewidth=1.6, linestyle=(0, (5, 2)))
    if all(moment.twins for course in own for moment in moments(course)):
        axes.plot(steps, _made_up(own), color=LIGHT["attack"], linewidth=1.3, linestyle=(0, (1, 1.5)))
    axes.axhline(0, color=LIGHT["chance"], linewidth=1.0, linestyle=(0, (3, 2.5)))
    axes.set_title(method, fontsize=9, loc="left", color=LIGHT["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


def _made_up(own: Sequence[Course]) -> list[float]:
    """How the made-up twins of all requests stand over time."""
    return [
        fmean(fmean(twinned.made_up for twinned in moments(course)[i].twins.values()) for course in own)
        for i in range(len(own[0].after) + 1)
    ]


def _over_time(own: Sequence[Course], name: str) -> list[float]:
    return [
        fmean(standing(course, moments(course)[i].sets[name]) for course in own) for i in range(len(own[0].after) + 1)
    ]
