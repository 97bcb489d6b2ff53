"""One self-contained page from one or several records: no network, the same bytes each time.

The page of one run has no script. One of several has a single script, which sorts and filters its tables and without
which they are plain ones; the page's policy names its hash, so that no other script can run.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expunge.errors import InputError
from expunge.report import (
    answers,
    attack_figures,
    comeback,
    compare,
    figures,
    metric_table,
    tables,
    theme,
    view,
    words,
)
from expunge.report.canvas import drawing
from expunge.report.limits import limits
from expunge.report.record import Record

SCRIPT = "compare.js"


def environment() -> Environment:
    """Templates of the report; every value is escaped unless a chart or `answers.marked` made it."""
    return Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(records: Sequence[Record], title: str | None = None) -> str:
    """The HTML of a report on `records`, compared where there are several; InputError where there are none."""
    if not records:
        raise InputError("There is nothing to report on.", "no records", "Name at least one run that was audited.")
    runs = figures.labelled([record.canonical() for record in records])
    near = runs if len(runs) <= view.SIDE_BY_SIDE else ()
    standings = compare.standings(runs)
    with drawing():
        panels = {
            "recovery": attack_figures.recovery_panels(near),
            "budgets": attack_figures.budget_panels(near),
            "sweeps": attack_figures.sweep_panels(near),
            "pareto": attack_figures.pareto_panels(standings),
            "levels": figures.level_panels(near),
            "curves": figures.curve_panels(near),
            "influence": figures.influence_panels(near),
            "maps": figures.map_panels(near),
            "lens": figures.lens_panels(near),
            "probe": figures.probe_panels(near),
            "groups": figures.group_panels(near),
        }
    templates = environment()
    script = templates.get_template(SCRIPT).render() if len(runs) > 1 else ""
    return templates.get_template("report.html.j2").render(
        title=words.visible(title, 120) if title else view.heading(runs),
        runs=runs,
        near=near,
        cards=[view.card(run) for run in near],
        panels=panels,
        comparison=compare.comparison(runs),
        key_rows=tables.key_rows(near),
        attack_rows=tables.attack_rows(runs),
        leaks=answers.leak_rows(runs, comeback.LEAKS if near else 1),
        answers=answers.answer_tables(near),
        utility=tables.utility_rows(near),
        metric_rows=metric_table.metric_rows(near),
        metric_notes=metric_table.metric_notes(near),
        prices=tables.prices(near),
        provenance=[(run.label, tables.provenance(run.record)) for run in runs],
        limits=limits(runs),
        map_top=figures.map_top(runs),
        map_quantity=figures.map_quantity(runs),
        levels=theme.LEVELS,
        said=view,
        words=words,
        light=theme.variables(dark=False),
        dark=theme.variables(dark=True),
        script=Markup(script),
        policy=_policy(script),
    )


def _policy(script: str) -> str:
    """What the page may run and load: our script by its hash, if there is one, and styles of its own."""
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    run = f" script-src 'sha256-{digest}';" if script else ""
    return f"default-src 'none';{run} style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
