"""The page on planted truths: it is what the records say, and the product's thresholds are those that were found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.audit.verdict import Rule
from expunge.data.benchmarks.people import build
from expunge.data.benchmarks.tiny import _all_texts, word_tokenizer
from expunge.request import Request

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import diagnosis  # noqa: E402
import verdict_models  # noqa: E402
from verdict_page import page  # noqa: E402
from verdict_tables import GRID, NO_TRACE, RESULTS, Model, load, parts, told  # noqa: E402


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return told(*load())


def test_the_page_and_the_rows_are_those_of_the_records(found: dict[str, Any]) -> None:
    assert json.loads((RESULTS / "verdict.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert (RESULTS / "verdict.md").read_text(encoding="utf-8").startswith(page(found))


def test_the_product_has_the_thresholds_of_the_first_half(found: dict[str, Any]) -> None:
    assert found["search"]["found"] == {name: getattr(Rule(), name) for name in GRID}


def test_no_world_is_in_two_parts() -> None:
    models = [Model(record) for record in load()[0]]
    worlds = [{model.seed for model in part} for part in parts(models).values()]
    assert all(worlds) and sum(map(len, worlds)) == len(set().union(*worlds))


def test_the_bars(found: dict[str, Any]) -> None:
    held_out = found["held_out"]
    assert held_out["hidden_called_erased"] == found["tuning"]["hidden_called_erased"] == 0
    assert held_out["right"] >= 0.95 * held_out["models"]
    assert set(found["small"]) <= {"INCONCLUSIVE", "BROKEN"}


def test_with_whatever_evidence_no_hidden_model_is_called_erased(found: dict[str, Any]) -> None:
    rows = {row["evidence"]: row["hidden_called_erased"] for row in found["ablations"]["all"]}
    assert rows.pop(NO_TRACE) > 0 and set(rows.values()) == {0}
    assert found["fresh"]["right"] >= 0.9 * found["fresh"]["models"]


def test_a_retrained_model_has_the_words_of_the_original(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its request is cut and has other text, and yet all models of a world share one tokenizer."""

    def words(request: Request) -> dict[str, int]:
        return word_tokenizer(_all_texts(request)).get_vocab()

    taught = list[Request]()
    whole = build(seed=1)
    monkeypatch.setattr(diagnosis, "world", lambda *_: diagnosis.World(1, whole, *(None,) * 3))  # type: ignore[arg-type]
    monkeypatch.setattr(verdict_models, "trained", lambda _, request, *__: taught.append(request))
    monkeypatch.setattr(verdict_models, "load_model", lambda _: SimpleNamespace(model=None))
    of = verdict_models.world(tmp_path, 1)
    verdict_models.retrained(tmp_path, of)
    assert words(taught[0]) == words(whole) != words(of.request)
