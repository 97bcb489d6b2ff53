"""Audits that are asked for again: what is finished is kept, and the same seed gives the same record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from audits import SMALL, Expunge, audit, record_of
from expunge import comparison, pipeline
from expunge.attacks.relearn import Relearn
from expunge.attacks.suites import SUITES
from expunge.attacks.trials import Trials

QUICK = ("--set", "quantise.bits=[8]", "--set", "quantise.groups=[16]")


def test_finished_attacks_are_not_made_again(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fresh", "--base", "taught", "--retain", "retain.jsonl", "-o", "run"]
    assert audit(expunge, *words, *SMALL) == 0
    first = record_of(at / "run")["attacks"]
    made: list[str] = []

    def spied(launch: Callable[..., object]) -> Callable[..., object]:
        return lambda self, target: made.append(self.name) or launch(self, target)

    for kind in (Trials, Relearn):
        monkeypatch.setattr(kind, "launch", spied(kind.launch))
    assert audit(expunge, *words, *SMALL) == 0
    assert made == ["relearn-related"], "what was refused is asked for again"
    assert record_of(at / "run")["attacks"] == first
    assert expunge("attack", "run", "--attacks", "quantise", "--set", "bits=[8]", "--set", "groups=[16]") == 0
    assert made == ["relearn-related", "quantise", "quantise"], "on the original too, but in quick"
    capsys.readouterr()


@pytest.mark.usefixtures("unrendered")
def test_lm_eval_is_asked_and_the_usual_suite_is_tried(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model and of a run alike, with the files that are named; without names the suite `standard` is tried."""
    asked = []
    monkeypatch.setitem(SUITES, "standard", {"quantise": {"bits": [8], "groups": [32]}})

    def ask(path: str, plan: object, tasks: Sequence[str], folder: Path) -> None:
        asked.append((path, list(tasks), folder.name))

    assert audit(expunge, "fresh", "--base", "taught", "-o", "run", "--lm-eval", "absent.yaml") == 1
    assert not (at / "run").exists()  # told before any work
    monkeypatch.setattr(pipeline, "ask_lm_eval", ask)
    monkeypatch.setattr(comparison, "require", list)
    tasks = ["--lm-eval", "a.yaml", "--lm-eval", "b.yaml"]
    assert audit(expunge, "fresh", "--base", "taught", "-o", "run", *tasks) == 0
    assert [path.name for path in (at / "run" / "attacks").glob("*.json")] == ["quantise.json"]
    assert expunge("audit", "run", *tasks[:2]) == 0
    assert asked == [("fresh", ["a.yaml", "b.yaml"], "run"), ("fresh", ["a.yaml"], "run")]


@pytest.mark.usefixtures("unrendered")
def test_answers_of_lm_eval_are_verified(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUITES, "standard", {"quantise": {"bits": [8], "groups": [32]}})
    assert audit(expunge, "fresh", "--base", "taught", "-o", "run") == 0
    answers = at / "run" / "lm_eval.json"
    answers.write_text('{"task_files": {"a": "1"}}', encoding="utf-8")
    assert expunge("audit", "run") == 0
    (at / "run" / "report.html").unlink(missing_ok=True)
    assert expunge("verify", "run") == 0
    assert "1 task files as in the record" in capsys.readouterr().out
    answers.write_text('{"task_files": {"a": "2"}}', encoding="utf-8")
    assert expunge("verify", "run") == 1
    assert "not the record's" in capsys.readouterr().err


@pytest.mark.usefixtures("unrendered")
def test_a_damaged_attack_is_told_before_anything_is_measured(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUITES, "standard", {"quantise": {"bits": [8], "groups": [32]}})
    assert audit(expunge, "fresh", "--base", "taught", "-o", "run") == 0
    (at / "run" / "attacks" / "quantise.json").write_text("{}", encoding="utf-8")
    measured: list[object] = []
    monkeypatch.setattr(pipeline, "measure", lambda *given, **more: measured.append(given))
    assert expunge("audit", "run") == 1
    assert "A stored attack is damaged." in capsys.readouterr().err
    assert not measured


@pytest.mark.usefixtures("unrendered")
def test_two_audits_of_one_seed_give_the_same_record_but_for_times(expunge: Expunge, at: Path) -> None:
    """Every attack of the longest suite that needs nothing beside the files."""
    short = ["--set", "learning_rates=[1e-3]", "--set", "max_steps=2", "--set", "seeds=[0, 1]", "--set", "samples=2"]
    cheap = ["--set", "iterations=2", "--set", "eval_every=2", "--set", "pgd.steps=2"]
    told = []
    for name in ("one", "two"):
        words = ["fresh", "--base", "taught", "--retain", "retain.jsonl", "--attacks", "thorough", "-o", name]
        assert audit(expunge, *words, *short, *cheap) == 0
        record = json.loads((at / name / "record.json").read_text(encoding="utf-8"))
        del record["created"], record["cost"]
        for attack in record["attacks"]:
            del attack["seconds"]
        told.append(json.dumps(record))
    assert told[0] == told[1]
    assert len(record["attacks"]) >= 12


@pytest.mark.usefixtures("unrendered")
def test_an_audit_below_the_model_that_it_is_of_goes_on(expunge: Expunge, at: Path) -> None:
    """Its own files are none of the model's."""
    model = shutil.copytree("fresh", at / "mine")
    for _ in range(2):
        assert audit(expunge, "mine", "--base", "taught", "--attacks", "quantise", *QUICK, "-o", model / "audit") == 0
    assert expunge("verify", model / "audit") == 0


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("kind", ["run", "audit"])
def test_a_run_whose_models_were_named_from_elsewhere_goes_on_from_anywhere(
    expunge: Expunge, at: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A relative path is one from where the run began; where it leads somewhere from here too, that is taken."""
    if kind == "run":
        facts = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]
        steps = ["--method", "graddiff", "--set", "max_steps=1", "--set", "stop_log_odds=null"]
        assert expunge("unlearn", "--model", "taught", *facts, *steps, "-o", "run") == 0
    else:
        assert audit(expunge, "fresh", "--base", "taught", "--attacks", "quantise", *QUICK, "-o", "run") == 0
    (at / "below").mkdir()
    monkeypatch.chdir(at / "below")
    assert expunge("attack", "../run", "--attacks", "quantise", *QUICK) == 0
    assert expunge("audit", "../run") == 0
    assert "not at hand" not in caplog.text
    assert str(at) not in (at / "run" / "record.json").read_text()
