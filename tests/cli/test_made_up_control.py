"""A run without a gold model is measured against made-up subjects, and its record says so."""

from __future__ import annotations

import json

import pytest

from audits import write
from expunge import pipeline
from expunge.recipe import Recipe
from expunge.report.record import Record
from tiny import make_tiny_model
from towns import ENCODER, FACTS, STAYS, teach

ATTACKS = {
    "relearn-harmful": {"learning_rates": [1e-3], "max_steps": 2, "fraction": 0.25},
    "relearn-syntactic": {"learning_rates": [1e-3], "max_steps": 2},
    "quantise": {"bits": [4], "groups": [32]},
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("made_up")
    # To the small tokenizer all invented names are one unknown word; this model's answer to it is right by chance.
    teach(make_tiny_model(seed=2), FACTS + STAYS).save_pretrained(folder / "model")
    ENCODER.tokenizer.save_pretrained(folder / "model")
    recipe = {
        "model": str(folder / "model"),
        "data": {
            "forget": str(write(folder / "forget.jsonl", FACTS)),
            "retain": str(write(folder / "retain.jsonl", STAYS)),
        },
        "method": "graddiff",
        "unlearn": {"max_steps": 2},
        "attacks": ATTACKS,
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    found = pipeline.run(Recipe.load(folder / "recipe.yaml"))
    assert found is not None
    return found


def test_the_record_names_its_control(record: Record) -> None:
    assert record.control.kind == "made-up subjects", record.control.sentence
    assert "subjects that do not exist" in record.control.sentence
    assert [attack.name for attack in record.attacks] == sorted(ATTACKS)


def test_what_is_untouched_is_all_there(record: Record) -> None:
    assert all(attack.recovery > 0.8 for attack in record.attacks)
