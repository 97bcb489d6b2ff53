"""The metrics on the page: one row each, in words, and nothing where nothing was measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from expunge.report.figures import labelled
from expunge.report.html import render
from expunge.report.metric_table import KINDS, SECTIONS, SETS, WORDS, metric_notes, metric_rows
from expunge.report.parts import LmEval, Metric, Metrics, MetricState
from expunge.report.record import Record
from synthetic_record import EVIL, make_record


def state(value: float, low: float | None = None, high: float | None = None) -> MetricState:
    return MetricState(value=value, low=low, high=high, values=(value, None))


METRICS = Metrics(
    rows=(
        Metric(name="extraction_strength", chance=0.00002, before=state(0.9, 0.8, 1.0), after=state(0.25, 0.1, 0.4)),
        Metric(name="mia_loss", chance=0.5, before=state(0.98), after=state(0.31), control=state(0.52)),
        Metric(name="retain_Q_A_Prob", chance=0.00002, after=state(0.4)),
    ),
    forget=("a", "b"),
    others=("c",),
    non_members="attack",
    reference="control",
    lm_eval=LmEval(file="lm_eval.json", sha256="0f" * 32, tasks=("towns",)),
)


def told(metrics: Metrics | None = METRICS, name: str = "graddiff") -> Record:
    return make_record(name).model_copy(update={"metrics": metrics})


def test_a_row_holds_value_interval_control_and_chance() -> None:
    rows = metric_rows(labelled([told()]))
    assert [row.title for row in rows if not row.cells] == list(SECTIONS)
    found = {row.name: row for row in rows}
    assert found["extraction_strength"].cells == ("0.9 (0.8 to 1.0)", "0.25 (0.1 to 0.4)", "–")
    assert found["mia_loss"].cells == ("0.98", "0.31", "0.52") and found["mia_loss"].chance == "0.5"
    assert found["retain_Q_A_Prob"].title == "to retain: probability per token"


def test_every_metric_has_words() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names))
    for name in names:
        prefix, _, kind = name.partition("_")
        assert name in WORDS or (prefix in SETS and kind in KINDS), name


def test_the_page_shows_them_and_says_what_they_are_measured_against() -> None:
    page = render([told()])
    assert "own measures" in page and "extraction strength" in page
    assert "graddiff: the 1 items never trained on are the request" in page
    assert "lm-eval was asked towns; see lm_eval.json." in page
    assert "own measures" not in render([told(None)])


def test_runs_stand_side_by_side() -> None:
    runs = labelled([told(), told(None, "npo")])
    assert all(len(row.cells) == 6 for row in metric_rows(runs) if row.cells)
    assert len(metric_notes(runs)) == 2


def test_hostile_text_is_escaped() -> None:
    hostile = METRICS.model_copy(update={"non_members": EVIL, "lm_eval": LmEval(file=EVIL, sha256="", tasks=(EVIL,))})
    page = render([told(hostile)])
    assert "<script" not in page and "<img" not in page and "\u202e" not in page


def test_the_record_keeps_them_and_reads_older_ones_without() -> None:
    text = told().dumps()
    assert Record.loads(text).dumps() == text
    tree = json.loads(text)
    assert tree["metrics"]["rows"][0]["after"]["values"] == [0.25, None]
    del tree["metrics"]
    assert Record.loads(json.dumps(tree)).metrics is None


@pytest.mark.parametrize("module", ["expunge.report.metric_table", "expunge.report.record"])
def test_the_page_needs_no_model(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
