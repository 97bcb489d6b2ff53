"""Deletion requests that are carried out again or withdrawn, whose verdict is told, and that are of plain texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from audits import Expunge, cut_off, facts, write
from expunge import pipeline
from expunge.cli_request import _print_standings
from expunge.continual.fulfil import verify
from expunge.continual.ledger import MLP_ROWS, Entry, Ledger, Standing
from expunge.data.example import Example
from expunge.errors import ResourceError, VerdictBelow
from expunge.request import Request

pytestmark = pytest.mark.usefixtures("unrendered")
SMALL = ("--attacks", "quantise", "--set", "quantise.bits=[8]", "--set", "quantise.groups=[16]")
STEP = (*SMALL, "--set", "max_steps=1", "--set", "stop_log_odds=null")
LEDGER = Path("ledger")


def add(expunge: Expunge, name: str, forget: Sequence[Example], *words: str) -> int:
    write(Path(f"{name}.jsonl"), forget)
    return expunge("request", "add", "--forget", f"{name}.jsonl", "--retain", "retain.jsonl", "--id", name, *words)


def apply(expunge: Expunge, *words: str | Path, method: str = "graddiff") -> int:
    return expunge("request", "apply", *words, "--method", method, *STEP, "-o", "runs")


def test_the_last_request_is_carried_out_again_from_where_it_began(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, forget in (("one", facts()[:2]), ("two", facts()[2:4])):
        assert add(expunge, name, forget) == 0
    assert apply(expunge, "taught") == 0
    ledger = Ledger(LEDGER)
    first = ledger.fulfilled()
    assert apply(expunge, "taught", "two", "--again", "--set", "learning_rate=1e-3", method="npo") == 0
    again = ledger.fulfilled()
    assert list(again) == ["one", "two"] and again["one"] == first["one"]
    assert (first["two"].method, again["two"].method) == ("graddiff", "npo")
    assert again["two"].run == "runs/two@2" and again["two"].model_before == first["one"].model_after
    assert again["two"].standings.keys() == {"two", "one"} and again["two"].known == first["two"].known
    assert again["two"].model_after != first["two"].model_after
    assert len(verify(ledger, "runs/two@2/model")) == 4
    capsys.readouterr()
    assert apply(expunge, "taught", "one", "--again") == 1
    assert "'two' was carried out after 'one'" in " ".join(capsys.readouterr().err.split())
    assert expunge("request", "show", "two") == 0
    assert "carried out 2 times" in capsys.readouterr().out
    assert add(expunge, "three", facts()[4:6]) == 0
    assert apply(expunge, "runs/two/model") == 1, "a model that was put aside"
    assert apply(expunge, "taught") == 0
    assert ledger.fulfilled()["three"].model_before == again["two"].model_after


def test_rows_of_a_run_that_was_put_aside_are_not_carried_on(expunge: Expunge, at: Path) -> None:
    for name, forget in (("one", facts()[:2]), ("two", facts()[2:4])):
        assert add(expunge, name, forget) == 0
        assert apply(expunge, "taught", method="mrp") == 0
    ledger = Ledger(LEDGER)
    begun = ledger.carried(MLP_ROWS, ledger.before("two").values())
    assert begun and begun[0].request == "one"
    assert apply(expunge, "taught", "two", "--again", method="mrp") == 0
    (carried, file), entry = ledger.carried(MLP_ROWS) or (None, Path()), ledger.fulfilled()["two"]
    assert carried == entry and file.name == "two@2.safetensors"
    assert (LEDGER / "removed" / "two.safetensors").is_file(), "entries of before it can still be checked"
    recipe = (Path(entry.run) / "recipe.yaml").read_text()
    assert "removed/one.safetensors" in recipe


def test_what_cannot_be_carried_out_again_is_told(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(expunge, "one", facts()[:2]) == 0
    for words, told in (
        (("taught", "one", "--again"), "was not carried out yet"),
        (("taught", "--again"), "Name it: MODEL ID --again"),
        (("taught", "none", "--again"), "was not carried out yet"),
    ):
        assert apply(expunge, *words) == 1
        assert told in " ".join(capsys.readouterr().err.split())
    assert apply(expunge, "taught", "one", "one") == 0, "named twice, done once"
    shutil.rmtree(at / "runs" / "one" / "model")
    assert apply(expunge, "other", "one", "--again") == 1
    assert "not the model that request 'one' began with" in " ".join(capsys.readouterr().err.split())
    assert apply(expunge, "taught", "one", "--again") == 0


def test_a_request_that_waits_is_withdrawn_and_may_be_asked_anew(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(expunge, "one", facts()[:2]) == 0
    assert add(expunge, "one-more", facts()[:2]) == 1, "it waits"
    assert expunge("request", "withdraw", "one", "--reason", "sent twice") == 0
    assert expunge("request", "withdraw", "one") == 1, "it does not wait any more"
    assert add(expunge, "one-more", facts()[:2]) == 0
    assert Ledger(LEDGER).pending() == ("one-more",)
    capsys.readouterr()
    assert expunge("request", "list") == 0
    assert "withdrawn" in capsys.readouterr().out
    assert expunge("request", "show", "one") == 0
    assert "sent twice" in capsys.readouterr().out
    assert apply(expunge, "taught") == 0
    assert list(Ledger(LEDGER).fulfilled()) == ["one-more"]
    assert expunge("request", "withdraw", "one-more") == 1, "it was carried out"


def test_the_verdict_is_told_and_can_be_the_exit_code(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(expunge, "one", facts()) == 0
    gentle = ("--set", "learning_rate=1e-9", "--fail-on", "not-forgotten")
    assert apply(expunge, "taught", *gentle) == VerdictBelow.exit_code
    told = capsys.readouterr().out
    assert "one: NOT FORGOTTEN" in told and "Report: runs/one/report.html" in told
    assert f"its last entry is {Ledger(LEDGER).entries()[-1].digest()}" in told
    assert list(Ledger(LEDGER).fulfilled()) == ["one"], "it is entered all the same"


def test_a_text_can_be_kept_but_not_asked_away(expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a text alone there is no question, and nothing to tell what is known of it by."""
    texts = [" ".join(f"{example.prompt} {example.answer}" for example in facts()[i : i + 2]) for i in (4, 6)]
    (at / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["request", "add", "--id", "texts"]
    assert expunge(*words, "--forget", "text.jsonl", "--retain", "retain.jsonl") == 1
    assert "cannot be asked for" in " ".join(capsys.readouterr().err.split())
    assert not Ledger(LEDGER).received()
    write(at / "asked.jsonl", facts()[:2])
    assert expunge(*words, "--forget", "asked.jsonl", "--retain", "text.jsonl") == 0
    assert [(example.prompt, example.answer) for example in Ledger(LEDGER).request("texts").retain] == [
        ("", text) for text in texts
    ]
    assert apply(expunge, "taught") == 0


def test_all_requests_are_put_to_the_model_with_one_template(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(at / "taught", at / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(at / "chatty", trust_remote_code=False)
    tokenizer.chat_template = "{% for m in messages %}question : {{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(at / "chatty")
    rows = [{"question": e.prompt, "answer": e.answer, "options": e.options} for e in facts()]
    for name, own in (("f1", rows[:2]), ("f2", rows[2:4]), ("keep", rows[6:8])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    words = ["request", "add", "--retain", "keep.jsonl"]
    assert expunge(*words, "--forget", "f1.jsonl", "--id", "one", "--template", "chat") == 0
    assert Ledger(LEDGER).request("one").forget[0].prompt == facts()[0].prompt, "no words around it"
    assert expunge(*words, "--forget", "f2.jsonl", "--id", "two") == 1
    assert "with the template 'chat'" in " ".join(capsys.readouterr().err.split())
    assert expunge(*words, "--forget", "f2.jsonl", "--id", "two", "--template", "chat") == 0
    assert apply(expunge, "chatty") == 0
    for name in ("one", "two"):
        assert json.loads((at / "runs" / name / "record.json").read_text())["model"]["template"] == "chat"
    assert (
        Ledger(LEDGER).entries()[0].digest()
        != Ledger(LEDGER).entries()[0].model_copy(update={"template": "plain"}).digest()
    )


def test_a_run_goes_on_though_another_request_came_in_since(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training was done; that request attacks with a fact which this one retains, so that a new run would not."""
    assert add(expunge, "one", facts()[:2]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "attack", cut_off)
        assert apply(expunge, "taught", "one") == ResourceError.exit_code
    kept = Ledger(LEDGER).request("one").retain
    write(at / "lesson.jsonl", kept[:1])
    write(at / "two.jsonl", facts()[2:4])
    words = ["request", "add", "--attack", "lesson.jsonl", "--id"]
    assert expunge(*words, "two", "--forget", "two.jsonl") == 0
    assert apply(expunge, "taught", "one") == 0
    assert len(Request.load(at / "runs" / "one" / "request").retain) == len(kept)
    assert apply(expunge, "taught", "one", "--again") == 0, "anew, in files of its own"
    assert len(Request.load(at / "runs" / "one@2" / "request").retain) == len(kept) - 1
    assert len((at / "runs" / "one.retain.jsonl").read_text().splitlines()) == len(kept)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "save_pretrained_atomic", cut_off)
        assert apply(expunge, "taught", "two", "--set", "checkpoint_steps=1") == ResourceError.exit_code
    write(at / "lesson.jsonl", kept[1:2])
    write(at / "three.jsonl", facts()[4:6])
    assert expunge(*words, "three", "--forget", "three.jsonl") == 0
    capsys.readouterr()
    assert apply(expunge, "taught", "two", "--set", "checkpoint_steps=1") == 1
    assert "Remove this folder" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(at / "runs" / "two")
    assert apply(expunge, "taught", "two") == 0


def test_a_withdrawn_request_leaves_nothing_behind(expunge: Expunge, at: Path) -> None:
    """Neither are the facts that it attacks with kept from training, nor does its template bind others."""
    assert add(expunge, "bad", facts()[:2], "--attack", "attack.jsonl", "--template", "chat") == 0
    assert expunge("request", "withdraw", "bad") == 0
    write(at / "two.jsonl", facts()[2:4])
    assert expunge("request", "add", "--forget", "two.jsonl", "--retain", "attack.jsonl", "--id", "two") == 0
    assert apply(expunge, "taught") == 0


def test_wrong_options_may_come_from_what_earlier_requests_keep(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later request needs no retain set; one whose facts find no wrong options at all is refused."""
    bare = [replace(example, options=(), subject="") for example in facts()]
    write(at / "keep.jsonl", bare[6:8])
    for name, own in (("one", facts()[:1]), ("two", bare[1:2])):
        write(at / f"{name}.jsonl", own)
    assert expunge("request", "add", "--forget", "one.jsonl", "--retain", "keep.jsonl", "--id", "one") == 0
    assert expunge("request", "add", "--forget", "two.jsonl", "--id", "two") == 0
    assert apply(expunge, "taught") == 0
    assert len(Ledger(LEDGER).request("two").forget[0].options) == 2
    assert add(expunge, "three", facts()[2:4]) == 0
    assert apply(expunge, "taught") == 0, "the second one is scored again, with its options"
    write(at / "four.jsonl", [replace(bare[5], prompt="who ?", answer="nobody")])
    assert expunge("request", "add", "--forget", "four.jsonl", "--ledger", "new") == 1
    assert "has no wrong options" in " ".join(capsys.readouterr().err.split())


def test_what_lies_below_a_model_is_none_of_it(expunge: Expunge, at: Path) -> None:
    """Checkpoints of a trainer, an export, or runs that are kept there come and go; the model is the same."""
    model = Path("mine")
    for below in (model, model / "checkpoint-500"):
        shutil.copytree("taught", below)
    assert add(expunge, "one", facts()[:2]) == 0
    assert expunge("request", "apply", model, "--method", "graddiff", *STEP, "-o", model / "runs") == 0
    begun = Ledger(LEDGER).fulfilled()["one"].model_before
    assert list(begun) == ["model.safetensors"]
    shutil.rmtree(model / "checkpoint-500")
    assert add(expunge, "two", facts()[2:4]) == 0
    assert expunge("request", "apply", model, "--method", "graddiff", *STEP, "-o", model / "runs") == 0
    assert list(Ledger(LEDGER).fulfilled()) == ["one", "two"]
    in_use = shutil.copytree(model / "runs" / "two" / "model", "in_use")
    shutil.copytree("taught", Path(in_use) / "export")
    assert expunge("request", "verify", in_use) == 0


def test_an_entry_that_counted_what_lies_below_a_model_is_read_as_others_are() -> None:
    entry = Entry(
        kind="fulfilled",
        request="one",
        time="t",
        previous="",
        model_before={"m.safetensors": "1", "c/m.safetensors": "2"},
    )
    assert entry.weights_before == {"m.safetensors": "1"}
    assert entry.model_before["c/m.safetensors"] == "2", "as it stands in the file, whose hash it is part of"


def test_requests_are_told_of_in_the_order_in_which_they_came_in(capsys: pytest.CaptureFixture[str]) -> None:
    """The tenth is not told before the second, and what nobody can tell is said to be unknown."""
    held = Standing(accuracy=1 / 3, log_odds=0.0, chance=1 / 3)
    names = [f"request-{n}" for n in (2, 10)]
    entry = Entry(
        kind="fulfilled", request=names[1], time="t", previous="", standings=dict.fromkeys(sorted(names), held)
    )
    _print_standings(entry, names)
    told = capsys.readouterr().out
    assert told.index("request-2") < told.index("request-10")
    assert told.count("unknown") == 2
