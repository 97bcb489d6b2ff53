"""What a run is measured against: made-up subjects without a gold model; and what rounding leaves of the original."""

from __future__ import annotations

import json
from pathlib import Path

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
    "quantise": {"bits": [8, 2], "groups": [32], "nf4": []},
}


def run(folder: Path, **more: object) -> Record:
    # To the small tokenizer all invented names are one unknown word; this model's answer to it is right by chance.
    teach(make_tiny_model(seed=2), FACTS + STAYS).save_pretrained(folder / "model")
    teach(make_tiny_model(seed=2), STAYS).save_pretrained(folder / "gold")
    for name in ("model", "gold"):
        ENCODER.tokenizer.save_pretrained(folder / name)
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
        **more,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    found = pipeline.run(Recipe.load(folder / "recipe.yaml"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(tmp_path_factory.mktemp("made_up"))


def test_the_record_names_its_control(record: Record) -> None:
    assert record.control.kind == "made-up subjects", record.control.sentence
    assert "subjects that do not exist" in record.control.sentence
    assert [attack.name for attack in record.attacks] == sorted(ATTACKS)


@pytest.mark.parametrize("gold", [False, True])
def test_what_rounding_leaves_of_the_original_stands_beside_it(record: Record, tmp_path: Path, gold: bool) -> None:
    """All of it at 8 bits, hardly any at 2; a model that is nearly the original stands where that does."""
    if gold:
        record = run(tmp_path, control=str(tmp_path / "gold"))
        assert record.control.kind == "gold model"
    by_name = {attack.name: attack for attack in record.attacks}
    untouched, fine, coarse = by_name["quantise"].curve
    assert (untouched.original, fine.original) == (pytest.approx(1.0), pytest.approx(1.0, abs=0.05))
    assert coarse.original is not None and coarse.original < 0.6
    for point in (fine, coarse):
        assert point.recovery == pytest.approx(point.original, abs=0.15)
    trained = [point for name, attack in by_name.items() if name != "quantise" for point in attack.curve]
    assert all(point.original is None for point in trained)


def test_what_is_untouched_is_all_there(record: Record) -> None:
    assert all(attack.recovery > 0.8 for attack in record.attacks)
