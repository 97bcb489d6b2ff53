"""One self-contained page from one or several records: no network, no scripts, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from expunge.errors import InputError
from expunge.report import figures, metric_table, tables, theme, view, words
from expunge.report.canvas import drawing
from expunge.report.record import Record


def environment() -> Environment:
    """Templates of the report; every value is escaped unless a chart or `tables.marked` made it."""
    return Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(records: Sequence[Record], title: str | None = None) -> str:
    """The HTML of a report on `records`, side by side where there are several; InputError where there are none."""
    if not records:
        raise InputError("There is nothing to report on.", "no records", "Name at least one run that was audited.")
    runs = figures.labelled([record.canonical() for record in records])
    with drawing():
        panels = {
            "levels": figures.level_panels(runs),
            "curves": figures.curve_panels(runs),
            "influence": figures.influence_panels(runs),
            "maps": figures.map_panels(runs),
            "lens": figures.lens_panels(runs),
            "probe": figures.probe_panels(runs),
            "groups": figures.group_panels(runs),
        }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=words.visible(title, 120) if title else view.heading(runs),
            runs=runs,
            cards=[view.card(run) for run in runs],
            panels=panels,
            key_rows=tables.key_rows(runs),
            attack_rows=tables.attack_rows(runs),
            answers=tables.answer_tables(runs),
            utility=tables.utility_rows(runs),
            metric_rows=metric_table.metric_rows(runs),
            metric_notes=metric_table.metric_notes(runs),
            prices=tables.prices(runs),
            provenance=[(run.label, tables.provenance(run.record)) for run in runs],
            map_top=figures.map_top(runs),
            map_quantity=figures.map_quantity(runs),
            levels=theme.LEVELS,
            said=view,
            words=words,
            light=theme.variables(dark=False),
            dark=theme.variables(dark=True),
        )
    )
