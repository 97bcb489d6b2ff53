"""The record: one JSON form, honest about what it cannot read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from expunge.errors import InputError
from expunge.report.record import Record, Text
from synthetic_record import STORIES, make_record

PROMISED = [
    "verdict",
    *(
        f"scores.{part}.{when}.{what}"
        for part in ("forget", "retain", "test")
        for when in ("before", "after")
        for what in ("accuracy", "log_odds", "chance")
    ),
    *(f"attacks.0.{what}" for what in ("name", "accuracy", "log_odds", "recovery")),
    *(f"influence.{what}" for what in ("erased", "hidden")),
    *(f"cost.{what}" for what in ("seconds", "peak_bytes", "steps")),
]


def dig(tree: Any, path: str) -> Any:
    for step in path.split("."):
        tree = tree[int(step)] if step.isdigit() else tree[step]
    return tree


@pytest.mark.parametrize("path", PROMISED)
def test_promised_names_are_there(path: str) -> None:
    assert dig(json.loads(make_record().dumps()), path) is not None


@pytest.mark.parametrize("name", STORIES)
def test_reading_what_was_written_changes_no_byte(name: str) -> None:
    text = make_record(name).dumps()
    assert Record.loads(text).dumps() == text


def test_the_text_is_canonical() -> None:
    text = make_record().dumps()
    assert text.isascii() and text.endswith("}\n") and "\r" not in text
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"


def test_floats_keep_six_digits_and_integers_all() -> None:
    record = make_record()
    record = record.model_copy(
        update={"cost": record.cost.model_copy(update={"seconds": 1234.56789, "peak_bytes": 3_214_567_891})}
    )
    cost = json.loads(record.dumps())["cost"]
    assert cost["seconds"] == 1234.57 and cost["peak_bytes"] == 3_214_567_891


def test_a_measure_that_is_not_finite_becomes_null() -> None:
    text = Text(perplexity_before=18.0, perplexity_after=math.inf, kl=math.nan)
    assert text.perplexity_after is None and text.kl is None
    with pytest.raises(ValidationError):
        make_record().cost.__class__(seconds=math.inf, peak_bytes=1, steps=1)


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError):
        make_record().verdict = "ERASED"  # type: ignore[misc]


def broken(**changes: Any) -> str:
    return json.dumps({**json.loads(make_record().dumps()), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "version None"),
        (broken(schema_version=2), "version 2"),
        (broken(schema_version=2), "reads version 1"),
        (broken(verdict="FINE"), "verdict"),
        (broken(colour="red"), "colour"),
        (broken(created="yesterday"), "yesterday"),
        (broken(cost={"seconds": 1, "peak_bytes": -1, "steps": 3}), "cost.peak_bytes"),
    ],
)
def test_a_bad_record_is_refused_with_the_fault(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"here\.json") as caught:
        Record.loads(text, "here.json")
    assert said in str(caught.value)


def test_maps_must_be_modules_by_layers() -> None:
    tree = json.loads(make_record().dumps())
    tree["influence"]["map_plus"].pop()
    with pytest.raises(InputError, match="influence"):
        Record.loads(json.dumps(tree))


def test_load_takes_a_file_or_its_folder(tmp_path: Path) -> None:
    record = make_record()
    (tmp_path / "record.json").write_text(record.dumps(), encoding="utf-8")
    assert Record.load(tmp_path).dumps() == Record.load(tmp_path / "record.json").dumps() == record.dumps()
    with pytest.raises(InputError, match="cannot be read"):
        Record.load(tmp_path / "nothing")


def test_the_strongest_attack_is_the_named_one_else_the_one_that_brought_back_most() -> None:
    record = make_record()
    details = record.verdict_details
    named = record.model_copy(
        update={"verdict_details": details.model_copy(update={"strongest_attack": "relearn-benign"})}
    )
    unnamed = record.model_copy(update={"verdict_details": details.model_copy(update={"strongest_attack": ""})})
    assert named.strongest is not None and named.strongest.name == "relearn-benign"
    assert unnamed.strongest is not None and unnamed.strongest.name == "relearn-harmful"
    assert record.model_copy(update={"attacks": ()}).strongest is None
