"""A run whose data or models have changed since is told of; what an attack found once is not lost to a weaker one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from audits import Expunge, audit, cut_off, facts, record_of, write
from expunge.attacking import beside, stored_attack
from expunge.attacks.suites import Chosen
from expunge.errors import ResourceError

RECIPE = """
model: taught
method: graddiff
data: {forget: forget.jsonl, retain: retain.jsonl}
unlearn: {max_steps: 1, stop_log_odds: null}
attacks: {quantise: {bits: [8], groups: [16]}}
output: run
"""


@pytest.fixture
def recipe(at: Path) -> Path:
    """A recipe on files of its own: those of the fixture are shared."""
    for name in ("forget.jsonl", "retain.jsonl"):
        copy = (at / name).read_text()
        (at / name).unlink()
        (at / name).write_text(copy)
    path = at / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.usefixtures("unrendered")
def test_a_finished_run_is_not_taken_for_one_of_other_data(
    expunge: Expunge, at: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expunge("run", recipe) == 0
    first = record_of(at / "run")
    assert expunge("run", recipe) == 0, "nothing has changed"
    write(at / "forget.jsonl", facts()[1:])
    assert expunge("run", recipe) == 1
    assert "other data: forget changed" in " ".join(capsys.readouterr().err.split())
    (at / "forget.jsonl").unlink()
    assert expunge("run", recipe) == 0, "personal data are deleted, and the run has its own copy"
    write(at / "forget.jsonl", facts())
    assert expunge("run", recipe) == 0
    assert record_of(at / "run")["hashes"] == first["hashes"]


@pytest.mark.usefixtures("unrendered")
def test_an_interrupted_run_keeps_its_request_where_other_data_are_refused(
    expunge: Expunge, at: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["unlearn", "--model", "taught", "--method", "graddiff", "--retain", "retain.jsonl", "-o", "run"]
    steps = ["--set", "stop_log_odds=null", "--set", "checkpoint_steps=1", "--set", "max_steps=2"]
    with monkeypatch.context() as patch:
        patch.setattr("expunge.pipeline.save_pretrained_atomic", cut_off)
        assert expunge(*words, "--forget", "forget.jsonl", *steps) == ResourceError.exit_code
    asked = (at / "run" / "request" / "forget.jsonl").read_text()
    write(at / "others.jsonl", facts()[1:])
    shutil.copyfile(at / "forget.jsonl", at / "kept.jsonl")
    shutil.copyfile(at / "others.jsonl", at / "forget.jsonl")
    assert expunge(*words, "--forget", "forget.jsonl", *steps) == 1
    assert (at / "run" / "request" / "forget.jsonl").read_text() == asked
    shutil.copyfile(at / "kept.jsonl", at / "forget.jsonl")
    assert expunge(*words, "--forget", "forget.jsonl", *steps) == 0


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("changed", ["base", "unlearned"])
@pytest.mark.parametrize("stage", [("attack", "run", "--attacks", "mix", "--set", "shares=[0.5]"), ("audit", "run")])
def test_models_that_have_changed_are_neither_attacked_nor_measured(
    expunge: Expunge, at: Path, changed: str, stage: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(at / "taught", at / "base")
    shutil.copytree(at / "fresh", at / "unlearned")
    for logs in (at / "base" / "logs", at / "unlearned" / "logs"):
        logs.mkdir()
        (logs / "events.0").write_text("")
    small = ["--attacks", "quantise", "--set", "bits=[8]", "--set", "groups=[16]"]
    assert audit(expunge, "unlearned", "--base", "base", "--retain", "retain.jsonl", "-o", "run", *small) == 0
    (at / changed / "README.md").write_text("A card may change.")
    (at / changed / "logs" / "events.0").write_text("So may what no model is read from.")
    assert expunge(*stage) == 0
    before = (at / "run" / "record.json").read_text()
    shutil.copyfile(at / "other" / "model.safetensors", at / changed / "model.safetensors")
    capsys.readouterr()
    assert expunge(*stage) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "model.safetensors has changed since" in told and changed in told
    assert (at / "run" / "record.json").read_text() == before


@pytest.mark.usefixtures("unrendered")
def test_a_weaker_attack_stands_beside_the_stronger_one_of_its_name(expunge: Expunge, at: Path) -> None:
    """Relearning for twenty steps brings the answers back, for one it does not; HIDDEN stays HIDDEN."""
    harmful = ["attack", "run", "--attacks", "relearn-harmful", "--set", "eval_every=1"]
    rate = ["--set", "learning_rates=[3e-3]", "--set", "max_steps=30"]
    weak = ["--set", "learning_rates=[1e-9]", "--set", "max_steps=1"]
    words = ["fresh", "--base", "taught", "--retain", "retain.jsonl", "-o", "run", *harmful[2:]]
    assert audit(expunge, *words, *rate) == 0
    strong = record_of(at / "run")
    assert expunge(*harmful, *weak) == 0
    assert expunge("audit", "run") == 0
    record = record_of(at / "run")
    assert [attack["name"] for attack in record["attacks"]] == ["relearn-harmful", "relearn-harmful@2"]  # type: ignore[attr-defined]
    assert record["attacks"][0] == strong["attacks"][0]  # type: ignore[index]
    assert record["verdict"] == strong["verdict"]
    assert expunge(*harmful, *weak) == 0, "the same again"
    assert expunge(*harmful, *rate) == 0
    assert sorted(path.name for path in (at / "run" / "attacks").glob("*.json")) == [
        "relearn-harmful.json",
        "relearn-harmful@2.json",
    ]


def test_results_of_other_settings_get_numbers(tmp_path: Path, expunge: Expunge, at: Path) -> None:
    small = ["--attacks", "quantise", "--set", "bits=[8]", "--set", "groups=[16]"]
    assert audit(expunge, "fresh", "--base", "taught", "--retain", "retain.jsonl", "-o", "run", *small) == 0
    stored = at / "run" / "attacks" / "quantise.json"
    settings = stored_attack(stored).settings
    same, other = Chosen(settings), Chosen({**settings, "bits": [4]})
    assert list(beside({"quantise": same}, stored.parent)) == ["quantise"]
    assert list(beside({"quantise": other}, stored.parent)) == ["quantise@2"]
    for name in ("quantise@2", "quantise@mine"):
        shutil.copyfile(stored, stored.with_name(f"{name}.json"))
    assert list(beside({"quantise": other, "quantise@mine": other}, stored.parent)) == ["quantise@3", "quantise@mine-2"]
    assert list(beside({"quantise@new": other}, stored.parent)) == ["quantise@new"]
    (stored.parent / "quantise@2.json").unlink()
    both = beside({"quantise": other, "quantise@2": same}, stored.parent)
    assert both == {"quantise@3": other, "quantise@2": same}, "a name that the caller gives is not taken"
    stored.write_text(json.dumps({"name": "quantise"}))
    assert list(beside({"quantise": other}, stored.parent)) == ["quantise"], "a damaged one is made again"


@pytest.mark.usefixtures("unrendered")
def test_an_attack_that_was_cut_before_the_control_is_left_out(
    expunge: Expunge, at: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ["--attacks", "quantise", "--set", "groups=[16]", "--set"]
    words = [
        "fresh",
        "--base",
        "taught",
        "--control",
        "other",
        "--retain",
        "retain.jsonl",
        "-o",
        "run",
        *small,
        "bits=[8]",
    ]
    assert audit(expunge, *words) == 0
    assert expunge("attack", "run", *small, "bits=[4]") == 0
    assert expunge("audit", "run") == 0
    assert len(record_of(at / "run")["attacks"]) == 2  # type: ignore[arg-type]
    (at / "run" / "control" / "quantise@2.json").unlink()
    assert expunge("audit", "run") == 0
    assert [each["name"] for each in record_of(at / "run")["attacks"]] == ["quantise"]  # type: ignore[attr-defined]
    assert "quantise@2 is left out, as it was not made on the control" in caplog.text
    assert expunge("attack", "run", *small, "bits=[4]") == 0
    assert expunge("audit", "run") == 0
    assert len(record_of(at / "run")["attacks"]) == 2  # type: ignore[arg-type]
