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

from expunge import pipeline
from expunge.attacks.base import AttackResult
from expunge.audit.control import came_back
from expunge.cli import app
from expunge.continual.ledger import ADAPTERS, MLP_ROWS, Ledger
from expunge.data.example import Example
from expunge.models.load import load_model
from expunge.models.projections import attached, load_rows
from expunge.models.tensors import load_tensors
from expunge.recipe import Recipe
from expunge.report.record import Record
from tiny import make_tiny_model

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
    tiny_examples = tuple(tiny_examples[i] for i in (3, 7, 0, 1, 4, 5, 6, 2))  # the first two are known, by luck
    assert add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6]) == 0
    assert expunge("apply", model, "--output", "runs", *SMALL) == 0
    assert add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:]) == 0
    last = tmp_path / "runs" / "first" / "model"
    stranger = shutil.copytree(model, tmp_path / "stranger")
    make_tiny_model(seed=1).save_pretrained(stranger)
    assert expunge("apply", stranger, "--output", "runs", *SMALL) == 1
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
    assert record["scores"]["test"]["after"]["n"] == 0  # what had to go earlier is no test of what stays
    assert record["attacks"][0]["settings"]["bits"] == [8]
    told = record["scores"]["groups"]["request_first"]["after"]["log_odds"]
    held_now = done["second"].standings["first"]
    assert held_now.log_odds == pytest.approx(told, abs=1e-4)
    # What came back is also told by made-up subjects, of the earlier request too.
    known = done["first"].known
    assert known.keys() == {e.id for e in tiny_examples[:2]}
    rounded = AttackResult.from_json(json.loads((tmp_path / "runs/second/earlier/first/quantise.json").read_text()))
    made_up = {name: each.made_up for name, each in known.items() if each.made_up is not None}
    assert len(rounded.twin_ids) == len(made_up) == 2
    again = came_back(rounded, {name: each.log_odds for name, each in known.items()}, made_up)
    assert again is not None and held_now.recovery == again

    assert expunge("list") == 0 and expunge("show", "first") == 0
    said = capsys.readouterr().out
    assert "after second" in said and "asked by first" in said
    new = tmp_path / "runs" / "second" / "model"
    assert expunge("verify", new) == 0 and "weights, config and tokenizer" in capsys.readouterr().out
    assert expunge("verify", last) == 1
    config = (new / "config.json").read_text()
    (new / "config.json").write_text(config.replace("10000.0", "500.0"))
    assert expunge("verify", new) == 1 and "config.json is not" in " ".join(capsys.readouterr().err.split())
    (new / "config.json").write_text(config)
    (new / "README.md").write_text("Another card.")
    assert expunge("verify", new) == 0
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


def story(folder: Path) -> list[dict[str, object]]:
    """The entries of the ledger there, without their times and what these go into."""
    timed = {"time", "previous"}
    return [entry.model_dump(exclude=timed) for entry in Ledger(folder / "ledger").entries()]


@pytest.mark.parametrize("cut", ["entered", "second run"])
@pytest.mark.parametrize("named", [False, True])
def test_the_same_command_goes_on_with_what_is_left(
    cut: str,
    named: bool,
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ("apply", model, *(("first", "second") if named else ()), "--output", "runs", *SMALL)
    for folder in ("straight", "again"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
        add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:])
        if folder == "again":
            with monkeypatch.context() as patch:
                cut_off(patch, cut)
                assert expunge(*command) == 130
            assert Ledger(Path("ledger")).pending() == ("second",) and not caplog.messages
        assert expunge(*command) == 0
    assert "Going on from runs/first/model, which request 'first' left" in caplog.text
    assert ("Request 'first' was carried out already" in caplog.text) == named
    assert story(tmp_path / "again") == story(tmp_path / "straight")


def cut_off(patch: pytest.MonkeyPatch, where: str) -> None:
    """Ctrl-C right after the first entry, or in the run of the second request after it was trained."""
    write_down, attack = Ledger.fulfil, pipeline.attack

    def entered(*args: object, **kwargs: object) -> None:
        write_down(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def attacked(path: Path, **kwargs: object) -> object:
        if path.name == "second":
            raise KeyboardInterrupt
        return attack(path, **kwargs)  # type: ignore[arg-type]

    if where == "entered":
        patch.setattr(Ledger, "fulfil", entered)
    else:
        patch.setattr(pipeline, "attack", attacked)


def test_without_the_last_model_nothing_goes_on(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(expunge, tmp_path, "first", tiny_examples[:2], tiny_examples[4:6])
    assert expunge("apply", model, "--output", "runs", *SMALL) == 0
    assert expunge("apply", model, "first", "--output", "runs", *SMALL) == 1
    assert "'first' does not wait" in capsys.readouterr().err
    add(expunge, tmp_path, "second", tiny_examples[2:3], tiny_examples[6:])
    left = tmp_path / "runs" / "first" / "model"
    kept = left.rename(tmp_path / "kept")
    for there in (False, True):
        assert expunge("apply", model, "--output", "runs", *SMALL) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "The model that the ledger ends with is missing or was changed" in said and "runs/first/model" in said
        if not there:
            shutil.copytree(model, left)
    assert not (tmp_path / "runs" / "second").exists()
    assert expunge("apply", kept, "--output", "runs", *SMALL) == 0


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
    entry, file = ledger.carried(MLP_ROWS) or (None, Path())
    assert entry == ledger.fulfilled()["second"] and entry.carries == "rows at mlp"
    file.write_bytes(b"else")
    add(expunge, tmp_path, "third", tiny_examples[3:4], tiny_examples[6:])
    assert expunge("apply", "runs/second/model", "--output", "runs", *projected) == 1


def in_turn(expunge: Expunge, tmp_path: Path, examples: tuple[Example, ...], *methods: str) -> int:
    """One request after another by `methods`, each on the model before it; what the last command gave."""
    code, last = 0, tmp_path / "model"
    for fact, method in zip(examples, methods, strict=False):
        name = fact.subject
        add(expunge, tmp_path, name, (fact,), examples[4:])
        rows = ("--set", "rank=1", "--set", "init=random") if method.startswith("mrp") else ()
        steps = ("--set", "max_steps=1", "--set", "stop_log_odds=null", "--attacks", "quantise")
        code = expunge("apply", last, "--output", "runs", "--method", method, *rows, *steps)
        last = tmp_path / "runs" / name / "model"
    return code


def test_adapters_are_not_fused_past_another_method(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_turn(expunge, tmp_path, tiny_examples, "eul", "eul", "graddiff", "eul") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "Request 'cyd', by graddiff, came after the adapters of request 'bob'" in said
    assert "Take a method without fused adapters" in said
    assert Ledger(tmp_path / "ledger").pending() == ("dan",) and not (tmp_path / "runs" / "dan").exists()
    recipe = Recipe.load(tmp_path / "runs" / "bob" / "recipe.yaml")
    assert recipe.settings["parametrization.earlier"].endswith("ada.safetensors")


def test_each_method_begins_with_what_its_own_kind_left(
    expunge: Expunge, model: Path, tmp_path: Path, tiny_examples: tuple[Example, ...]
) -> None:
    assert in_turn(expunge, tmp_path, tiny_examples, "mrp", "eul", "mrp_code", "mrp") == 0
    done = Ledger(tmp_path / "ledger").fulfilled()
    assert [entry.carries for entry in done.values()] == [MLP_ROWS, ADAPTERS, "rows at block", MLP_ROWS]
    earlier = [Recipe.load(tmp_path / "runs" / n / "recipe.yaml").settings.get("parametrization.earlier") for n in done]
    assert earlier == [None, None, None, str(Path("ledger") / "removed" / "ada.safetensors")]
    # Neither the rows at whole blocks nor what another method trained since came in between.
    first, blocks, last = (load_rows(tmp_path / "ledger/removed" / f"{n}.safetensors") for n in ("ada", "cyd", "dan"))
    assert all(len(blocks[b]) == 1 and len(last[b]) == 2 for b in first)
    down = load_tensors(tmp_path / "runs" / "dan" / "model" / "model.safetensors")[
        "model.layers.1.mlp.down_proj.weight"
    ]
    assert (last[1] @ down).norm() < 1e-5 * down.norm()
    assert torch.allclose(first[1] @ last[1].T @ last[1], first[1], atol=1e-6)
    assert attached(load_model(tmp_path / "runs" / "dan" / "model").model).keys() == blocks.keys()


def test_what_is_forgotten_later_is_not_taught_to_attack_an_earlier_request(
    expunge: Expunge, model: Path, tmp_path: Path, tiny_examples: tuple[Example, ...]
) -> None:
    taught = write(tmp_path / "taught.jsonl", *tiny_examples[2:4])
    files = write(tmp_path / "f.jsonl", tiny_examples[0]), write(tmp_path / "r.jsonl", *tiny_examples[5:])
    assert expunge("add", "--forget", files[0], "--retain", files[1], "--attack", taught, "--id", "first") == 0
    add(expunge, tmp_path, "second", tiny_examples[2:3], (*tiny_examples[3:4], *tiny_examples[6:]))
    grid = ("--set", "relearn-related.max_steps=1", "--set", "relearn-related.eval_every=1")
    attacks = ("--attacks", "relearn-related,quantise", "--set", "relearn-related.learning_rates=[1e-5]", *grid)
    assert expunge("apply", model, "--output", "runs", *STEP, *attacks) == 0
    found = [tmp_path / "runs" / place for place in ("first/attacks", "second/earlier/first")]
    trained = [json.loads((folder / "relearn-related.json").read_text())["trained_ids"] for folder in found]
    assert trained == [[e.id for e in tiny_examples[2:4]], [tiny_examples[3].id]]
    kept = (tmp_path / "runs" / "second.retain.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in kept} == {e.prompt for e in tiny_examples[5:]}


def test_an_earlier_request_whose_attack_has_nothing_left_to_teach_is_scored_all_the_same(
    expunge: Expunge, model: Path, tmp_path: Path, tiny_examples: tuple[Example, ...]
) -> None:
    """All that it was attacked with is forgotten now; the attack that was asked for is not possible on it any more."""
    for name, facts in (("first", tiny_examples[:4]), ("second", tiny_examples[2:6])):
        files = [write(tmp_path / f"{name}{part}.jsonl", *own) for part, own in enumerate((facts[:2], facts[2:]))]
        kept = write(tmp_path / "kept.jsonl", *tiny_examples[6:])
        assert expunge("add", "--forget", files[0], "--retain", kept, "--attack", files[1], "--id", name) == 0
    grid = ("--set", "relearn-related.max_steps=1", "--set", "relearn-related.eval_every=1")
    assert expunge("apply", model, "--output", "runs", *STEP, "--attacks", "relearn-related", *grid) == 0
    standings = Ledger(tmp_path / "ledger").fulfilled()["second"].standings
    assert {name: each.attack for name, each in standings.items()} == {"first": "", "second": "relearn-related"}


def test_the_demo_s_model_may_be_asked_for_by_name(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("expunge.source.fetch_smollm2", lambda **progress: model)
    for name, place in (("first", 0), ("second", 1)):
        add(expunge, tmp_path, name, tiny_examples[place : place + 1], tiny_examples[4:])
        assert expunge("apply", "smollm2", "--output", "runs", *SMALL) == 0
    assert expunge("verify", tmp_path / "runs" / "second" / "model") == 0


def test_a_suite_may_be_asked_for_by_name(
    expunge: Expunge,
    model: Path,
    tmp_path: Path,
    tiny_examples: tuple[Example, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = (tiny_examples[3], tiny_examples[7])  # by luck, and not equally well
    add(expunge, tmp_path, "first", known, tiny_examples[4:6])
    assert expunge("apply", model, "--output", "runs", *STEP, "--attacks", "quik") == 1
    assert "quick" in " ".join(capsys.readouterr().err.split())
    fewer = ("--set", "relearn-harmful.max_steps=2")
    assert expunge("apply", model, "--output", "runs", *STEP, *fewer, "--attacks", "quick") == 0
    record = json.loads((tmp_path / "runs" / "first" / "record.json").read_text())
    by_name = {attack["name"]: attack for attack in record["attacks"]}
    assert {"relearn-harmful", "quantise", "prompts"} <= by_name.keys()
    assert by_name["quantise"]["settings"]["bits"] == [4] and by_name["relearn-harmful"]["settings"]["max_steps"] == 2
    # The ledger tells what the report tells.
    strongest = Record.load(tmp_path / "runs" / "first").strongest
    told = Ledger(tmp_path / "ledger").fulfilled()["first"].standings["first"]
    assert strongest is not None and strongest.known
    assert (told.attack, told.recovery) == (strongest.name, pytest.approx(strongest.recovery, abs=1e-5))
