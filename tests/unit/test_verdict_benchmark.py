"""The page on planted truths: it is what the records say, and the product's thresholds are those that were found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.audit.verdict import Rule

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from verdict_page import page  # noqa: E402
from verdict_tables import GRID, RESULTS, Model, halves, load, told  # noqa: E402


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return told(*load())


def test_the_page_and_the_rows_are_those_of_the_records(found: dict[str, Any]) -> None:
    assert json.loads((RESULTS / "verdict.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert (RESULTS / "verdict.md").read_text(encoding="utf-8").startswith(page(found))


def test_the_product_has_the_thresholds_of_the_first_half(found: dict[str, Any]) -> None:
    assert found["search"]["found"] == {name: getattr(Rule(), name) for name in GRID}


def test_no_world_is_in_both_halves() -> None:
    models = [Model(record) for record in load()[0]]
    one, other = ({model.seed for model in half} for half in halves(models))
    assert one and other and not one & other


def test_the_bars(found: dict[str, Any]) -> None:
    held_out = found["held_out"]
    assert held_out["hidden_called_erased"] == found["tuning"]["hidden_called_erased"] == 0
    assert held_out["right"] >= 0.95 * held_out["models"]
    assert set(found["small"]) <= {"INCONCLUSIVE", "BROKEN"}
