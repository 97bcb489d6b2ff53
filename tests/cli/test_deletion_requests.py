"""Deletion requests one after another: taken in, carried out, listed, proven."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks.base import AttackResult
from expunge.cli import app
from expunge.continual.ledger import Ledger
from expunge.continual.standing import Known
from expunge.data.example import Example
from expunge.models.projections import load_rows

Expunge = Callable[..., int]


@pytest.fixture
def expunge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Expunge:
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> int:
        try:
            app(["request", *map(str, words)], standalone_mode=False)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


@pytest.fixture
def model(tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write(path: Path, *examples: Example) -> Path:
    path.write_text("\n".join(json.dumps(e.to_json()) for e in examples), encoding="utf-8")
    return path


def add(expunge: Expunge, tmp_path: Path, name: str, forget: tuple[Example, ...], retain: tuple[Example, ...]) -> int:
    files = write(tmp_path / f"{name}-f.jsonl", *forget), write(tmp_path / f"{name}-r.jsonl", *retain)
    return expunge("add", "--forget", files[0], "--retain", files[1], "--id", name, "--reason", f"asked by {name}")


STEP = ("--method", "graddiff", "--set", "max_steps=1", "--set", "stop_log_odds=null")
SMALL = (
    *STEP,
    *("--attacks", "quantise", "--set", "quantise.bits=[8]"),
)


def test_two_requests_from_coming_in_to_the_proof(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6]) == 0
    assert expunge("apply", model, "--output", "runs", *SMALL) == 0
    assert add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:]) == 0
    last = tmp_path / "runs" / "first" / "model"
    assert expunge("apply", model, "--output", "runs", *SMALL) == 1  # not the model that the ledger ends with
    assert "not the model that the ledger ends with" in capsys.readouterr().err
    assert expunge("apply", last, "--output", "runs", *SMALL) == 0

    done = Ledger(tmp_path / "ledger").fulfilled()
    assert list(done) == ["first", "second"] and done["second"].model_before == done["first"].model_after
    assert set(done["second"].standings) == {"first", "second"} and set(done["first"].standings) == {"first"}
    kept = (tmp_path / "runs" / "second.retain.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in kept} == {e.prompt for e in tiny_examples[4:]}
    held = (tmp_path / "runs" / "second.hold.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in held} == {e.prompt for e in tiny_examples[:2]}
    assert not (tmp_path / "runs" / "first.hold.jsonl").exists()
    record = json.loads((tmp_path / "runs" / "second" / "record.json").read_text())
    assert record["scores"]["groups"]["request_first"]["after"]["n"] == 2
    assert record["attacks"][0]["settings"]["bits"] == [8]
    told = record["scores"]["groups"]["request_first"]["after"]["log_odds"]
    held_now = done["second"].standings["first"]
    assert held_now.log_odds == pytest.approx(told, abs=1e-4)
    # What came back is also told by made-up subjects, of the earlier request too.
    first = done["first"]
    assert first.before is not None and first.lead is not None
    rounded = json.loads((tmp_path / "runs/second/earlier/first/quantise.json").read_text())
    assert len(rounded["twin_ids"]) == 2
    known = Known(first.before, first.lead)
    assert held_now.recovery == known.share(AttackResult.from_json(rounded))

    assert expunge("list") == 0 and expunge("show", "first") == 0
    said = capsys.readouterr().out
    assert "after second" in said and "asked by first" in said
    new = tmp_path / "runs" / "second" / "model"
    assert expunge("verify", new) == 0
    assert expunge("verify", last) == 1
    weights = new / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    assert expunge("verify", new) == 1
    assert expunge("apply", new, "--output", "runs", *SMALL) == 1


def test_an_interrupted_apply_leaves_the_last_good_model_and_goes_on(
    expunge: Expunge, model: Path, tmp_path: Path, tiny_examples: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
    add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:])
    with monkeypatch.context() as patch:
        patch.setattr("expunge.continual.fulfil.Requests._earlier", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert expunge("apply", model, "first", "--output", "runs", *SMALL) == 130
    assert Ledger(tmp_path / "ledger").pending() == ("first", "second")
    weights = (tmp_path / "runs/first/model/model.safetensors").stat().st_mtime_ns
    assert expunge("apply", model, "--output", "runs", *SMALL) == 0
    assert (tmp_path / "runs/first/model/model.safetensors").stat().st_mtime_ns == weights  # not made again
    assert Ledger(tmp_path / "ledger").pending() == ()
    assert expunge("apply", "runs/second/model", "--output", "runs", *SMALL) == 0  # nothing waits


def test_requests_that_cannot_be(
    expunge: Expunge, tmp_path: Path, tiny_examples: tuple[Example, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6]) == 0
    for name, forget, retain, message in (
        ("first", tiny_examples[2:3], tiny_examples[6:], "There is a request 'first' already"),
        ("../x", tiny_examples[2:3], tiny_examples[6:], "usable as a folder's name"),
        ("again", tiny_examples[1:3], tiny_examples[6:], "1 of 2 facts are those of request 'first', which waits"),
        ("keep", tiny_examples[2:3], tiny_examples[1:2], "1 facts that request 'first' wants forgotten"),
        ("both", tiny_examples[2:3], tiny_examples[2:4], "forget and retain overlap"),
    ):
        capsys.readouterr()
        assert add(expunge, tmp_path, name.replace("/", "-") if name != "../x" else "..x", forget, retain) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert expunge("apply", "model", "nobody") == 1 and expunge("show", "nobody") == 1 and expunge("verify", "m") == 1
    assert list(Ledger(tmp_path / "ledger").received()) == ["first"]


def test_what_is_allowed_is_told(
    expunge: Expunge, tmp_path: Path, tiny_examples: tuple[Example, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (replace(e, subject="ada") for e in tiny_examples[:2])
    add(expunge, tmp_path, "first", (one,), tiny_examples[4:6])
    assert add(expunge, tmp_path, "second", (other, tiny_examples[4]), tiny_examples[6:]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 facts were kept for request 'first'" in said and "'first' is about ada too" in said


def test_nobody_changes_an_old_entry(
    expunge: Expunge, tmp_path: Path, tiny_examples: tuple[Example, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
    add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:])
    book = tmp_path / "ledger" / "ledger.json"
    whole = book.read_text()
    book.write_text(whole.replace("asked by first", "asked by nobody"))
    assert expunge("list") == 1 and "Entry 1 was changed" in " ".join(capsys.readouterr().err.split())
    book.write_text(whole[:40])
    assert expunge("list") == 1
    book.write_text(whole)
    shutil.copy(tmp_path / "second-f.jsonl", tmp_path / "ledger" / "requests" / "first" / "forget.jsonl")
    assert expunge("show", "first") == 1 and "not those received" in " ".join(capsys.readouterr().err.split())


def test_a_projection_begins_with_what_earlier_requests_removed(
    expunge: Expunge, model: Path, tmp_path: Path, tiny_examples: tuple[Example, ...]
) -> None:
    add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
    add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:])
    small = ("--set", "max_steps=1", "--set", "stop_log_odds=null", "--attacks", "quantise")
    projected = ("--method", "mrp", "--set", "rank=1", "--set", "init=random", *small)
    assert expunge("apply", model, "--output", "runs", *projected) == 0
    ledger = Ledger(tmp_path / "ledger")
    one, two = (load_rows(tmp_path / "ledger" / "removed" / f"{name}.safetensors") for name in ("first", "second"))
    assert one.keys() == two.keys() and all(len(one[block]) == 1 and len(two[block]) == 2 for block in one)
    assert all(torch.allclose(one[block] @ two[block].T @ two[block], one[block], atol=1e-6) for block in one)
    file = ledger.removed()
    assert file is not None and ledger.fulfilled()["second"].removed
    file.write_bytes(b"else")
    add(expunge, tmp_path, "third", tiny_examples[3:4], tiny_examples[6:])
    assert expunge("apply", "runs/second/model", "--output", "runs", *projected) == 1


def test_a_suite_may_be_asked_for_by_name(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
    assert expunge("apply", model, "--output", "runs", *STEP, "--attacks", "quik") == 1
    assert "quick" in " ".join(capsys.readouterr().err.split())
    fewer = ("--set", "relearn-harmful.max_steps=2")
    assert expunge("apply", model, "--output", "runs", *STEP, *fewer, "--attacks", "quick") == 0
    record = json.loads((tmp_path / "runs" / "first" / "record.json").read_text())
    by_name = {attack["name"]: attack for attack in record["attacks"]}
    assert {"relearn-harmful", "quantise", "prompts"} <= by_name.keys()
    assert by_name["quantise"]["settings"]["bits"] == [4] and by_name["relearn-harmful"]["settings"]["max_steps"] == 2
