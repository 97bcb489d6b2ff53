"""`expunge audit MODEL --base BASE`: any two checkpoints, no knowledge of how they were made, and one alone."""

from __future__ import annotations

import json
import logging
import runpy
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from audits import SMALL, Expunge, audit, record_of, save
from expunge import comparison
from expunge.attacking import choose
from expunge.attacks.quantise import Quantise
from expunge.attacks.suites import SUITES
from expunge.errors import InputError
from expunge.models.storage import folder_hashes
from expunge.recipe import Comparison
from expunge.settings import parse_yaml
from tiny import make_tiny_model, make_tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_whole_way(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is a run: it goes on, takes further attacks and is verified; the model is left alone."""
    before = folder_hashes(at / "fresh")
    pair = ["--base", "taught", "--retain", "retain.jsonl", "-o", "run", *SMALL]
    with caplog.at_level(logging.WARNING):
        assert audit(expunge, "fresh", *pair) == 0
    assert "relearn-related is left out" in caplog.text
    first = record_of(at / "run")
    monkeypatch.setattr(Quantise, "control_only", True)
    assert expunge("attack", "run", "--attacks", "relearn-benign", *SMALL[2:6]) == 0
    assert expunge("audit", "run", "--fail-on", "not-forgotten") == 0
    record = record_of(at / "run")
    attacks = {attack["name"]: attack for attack in record["attacks"]}
    assert list(attacks) == ["prompts", "prune", "quantise", "relearn-benign", "relearn-harmful"]
    assert all(attack["curve"] == attacks[attack["name"]]["curve"] for attack in first["attacks"])
    assert [name for name, attack in attacks.items() if not attack["counts"]] == ["quantise"]
    reasons = record["verdict_details"]["reasons"]
    assert sum("quantise does not count" in reason for reason in reasons) == 1
    assert not any("quantise:" in reason for reason in reasons)
    assert record["recipe"]["method"] == "fresh"
    assert record["scores"]["forget"]["before"]["accuracy"] == 1.0
    assert record["scores"]["forget"]["after"]["accuracy"] < 0.8
    assert record["scores"]["retain"]["before"]["n"] == record["scores"]["retain"]["after"]["n"] == 4
    assert expunge("verify", "run") == 0
    assert not (at / "run" / "model").exists()
    assert folder_hashes(at / "fresh") == before
    assert str(at) not in (at / "run" / "record.json").read_text()


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("original", [["--base", "taught"], ["--no-base"]])
def test_a_model_that_still_answers_is_stopped_at_the_gate(expunge: Expunge, at: Path, original: list[str]) -> None:
    words = [*original, "--attacks", "quantise", "--set", "bits=[8]", "-o", "run"]
    assert audit(expunge, "taught", *words, "--fail-on", "hidden") == 10
    record = record_of(at / "run")
    assert record["verdict"] == "NOT FORGOTTEN"
    assert any("not at hand" in reason for reason in record["verdict_details"]["reasons"]) == (len(original) == 1)


@pytest.mark.usefixtures("unrendered")
def test_every_look_at_a_base_on_the_hub_is_of_the_asked_revision(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str | None]()

    def snapshot(_: str, *, revision: str | None, **__: object) -> str:
        asked.append(revision)
        return str(at / "taught")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    words = ["--base", "org/taught", "--attacks", "mix", "--set", "revision=v1", "--set", "shares=[0.5]", "-o", "run"]
    assert audit(expunge, "fresh", *words) == 0
    assert asked
    assert set(asked) == {"v1"}


@pytest.mark.usefixtures("unrendered")
def test_without_its_base_a_run_takes_the_attacks_that_do_not_need_it(
    expunge: Expunge, at: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--attacks", "prompts", "--set")
    assert audit(expunge, "fresh", "--base", "taught", *words, "kinds=[prefill]", "-o", "run") == 0
    (at / "taught").unlink()
    with caplog.at_level(logging.WARNING):
        assert expunge("attack", "run", *words, "kinds=[role-play]") == 0
        assert "not at hand" not in caplog.text
        assert expunge("attack", "run", "--attacks", "mix") == InputError.exit_code
    assert "not at hand" in caplog.text


@pytest.mark.usefixtures("unrendered")
def test_alone_a_model_that_says_nothing_passes_no_verdict_of_erased(expunge: Expunge, at: Path) -> None:
    """With a control: what an attack finds by itself counts then, and nothing is said of a time before."""
    words = ["--no-base", "--retain", "retain.jsonl", "--attack", "attack.jsonl", "--control", "other", "-o", "run"]
    words += ["--test", "paraphrase=forget.jsonl"]
    assert audit(expunge, "fresh", *words, *SMALL, "--fail-on", "hidden") == 0
    record = record_of(at / "run")
    assert record["verdict"] == "INCONCLUSIVE"
    assert "was not measured" in record["control"]["sentence"]
    scores = record["scores"]
    assert scores["groups"]["paraphrase"]["before"]["accuracy"] == 1.0
    assert scores["test"]["after"]["n"] == 0  # what has to go is no test of what has to stay
    assert scores["forget"]["before"]["accuracy"] == 1.0
    assert (scores["retain"]["before"]["n"], scores["retain"]["after"]["n"]) == (0, 4)
    assert record["text"]["perplexity_before"] is None and record["text"]["perplexity_after"] > 0
    assert record["hashes"]["weights_before"] == ""
    assert {attack["name"] for attack in record["attacks"]} == set(SUITES["quick"])
    assert expunge("verify", "run") == 0


def changed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    return model


def tokenizer_with(change: Callable[[dict[str, int]], None]) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with another vocabulary."""
    tree = json.loads(make_tiny_tokenizer().backend_tokenizer.to_str())
    change(tree["model"]["vocab"])
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tree)), **marks)


def exchanged(one: str, other: str) -> Callable[[dict[str, int]], None]:
    def change(vocabulary: dict[str, int]) -> None:
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    return change


@pytest.mark.usefixtures("unrendered")
def test_a_tokenizer_that_reads_the_request_otherwise_is_told_with_an_example(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(at / "moved", make_tiny_model(), tokenizer_with(exchanged("oslo", "lima")))
    assert audit(expunge, "moved", "--base", "taught", "-o", "run") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "tokenizers differ" in told and "oslo" in told and told.count("error:") == 1
    assert not (at / "run").exists()
    save(at / "unused", make_tiny_model(), tokenizer_with(exchanged("w60", "w61")))
    with caplog.at_level(logging.WARNING):
        assert audit(expunge, "unused", "--base", "taught", "--attacks", "quantise", "-o", "run") == 0
    assert "not in any text of the request" in caplog.text


def without(text: str, *keys: str) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    return "".join(json.dumps({k: v for k, v in row.items() if k not in keys}) + "\n" for row in rows)


def spoil(path: Path, text: str) -> str:
    path.write_text(text)
    return path.name


def only(at: Path, line: str) -> list[str]:
    return ["--forget", spoil(at / "only.jsonl", line + "\n")]


UNREADABLE = '{"prompt": "where", "answer": "elsewhere", "options": ["nowhere"]}'


def damaged(at: Path) -> str:
    shutil.copytree(at / "fresh", at / "damaged")
    weights = at / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "damaged"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (lambda at: ["taught", "--base", save(at / "wide", make_tiny_model(intermediate_size=128))], "do not fit"),
        (lambda at: ["taught", "--base", save(at / "deep", make_tiny_model(num_hidden_layers=3))], "layers.2"),
        (lambda at: ["taught", "--base", "fresh", "--control", save(at / "w", make_tiny_model(vocab_size=97))], "97"),
        (lambda at: ["taught", "--base", damaged(at)], "weights cannot be read"),
        (lambda at: ["taught", "--base", "forget.jsonl"], "this is a file"),
        (lambda at: ["nowhere/at/all", "--base", "taught"], "nowhere"),
        (lambda at: ["taught", "--base", "fresh", "--attacks", "quik"], "'quick'"),
        (lambda at: ["taught", "--base", "fresh", "--attacks", "relearn-related"], "others, which"),
        (lambda at: ["taught", "--base", "fresh", "--set", "colour=red"], "colour"),
        (lambda at: ["taught", "--no-base", "--set", "revision=main"], "revision"),
        (lambda at: ["taught", "--base", "fresh", "--no-base"], "one of the two"),
        (lambda at: ["taught"], "--base BASE"),
        (
            lambda at: ["taught", "--base", "fresh", *only(at, '{"prompt": "where", "answer": "oslo"}')],
            "no wrong options",
        ),
        (lambda at: ["taught", "--base", "fresh", *only(at, '{"prompt": "where", "answer": " "}')], "answer"),
        (lambda at: ["taught", "--base", "fresh", *only(at, UNREADABLE)], "cannot tell"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(
    expunge: Expunge,
    at: Path,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path], list[str | Path]],
    says: str,
) -> None:
    assert audit(expunge, *words(at), "-o", "run") == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert says in " ".join(told.split())
    assert not (at / "run").exists()


@pytest.mark.usefixtures("unrendered")
def test_a_run_and_a_model_are_not_mixed_up(
    expunge: Expunge, at: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A run brings its own data; a folder goes on with the same audit only; bare questions get options."""
    assert expunge("audit", "taught", "--no-base") == 1
    assert "--forget" in capsys.readouterr().err
    bare = spoil(at / "bare.jsonl", without((at / "forget.jsonl").read_text(), "options"))
    words = ["--base", "taught", "--attacks", "quantise", "-o", "run"]
    with caplog.at_level(logging.WARNING):
        assert expunge("audit", "fresh", "--forget", bare, *words) == 0
    assert "bring no wrong options" in caplog.text
    assert audit(expunge, "fresh", *words) == 1  # other data
    assert expunge("audit", "other", "--forget", bare, *words) == 1  # another model
    assert "same audit" in " ".join(capsys.readouterr().err.split())
    assert audit(expunge, "run", "--base", "taught") == 1
    assert "--base is for other models" in " ".join(capsys.readouterr().err.split())
    (at / "mine").mkdir()
    (at / "mine" / "notes.txt").write_text("mine")
    assert audit(expunge, "fresh", *words[:-1], "mine") == 1
    assert [path.name for path in (at / "mine").iterdir()] == ["notes.txt"]


def test_the_workflow_is_yaml_and_its_command_is_one_of_ours(
    expunge: Expunge, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = parse_yaml((EXAMPLES / "github_action.yml").read_text(), "github_action.yml")
    steps = tree["jobs"]["audit"]["steps"]
    (line,) = (step["run"] for step in steps if step.get("run", "").startswith("expunge "))
    for name, value in tree["env"].items():
        line = line.replace(f'"${name}"', value)
    seen = []

    def compare(plan: Comparison, names: Sequence[str], own: dict[str, object], *others: object) -> None:
        choose(plan, names, own)
        seen.append(plan)
        raise InputError("It was understood.")

    monkeypatch.setattr(comparison, "compare", compare)
    assert expunge(*shlex.split(line)[1:]) == 1
    assert "It was understood." in capsys.readouterr().err
    assert (seen[0].model, seen[0].base) == (tree["env"]["MODEL"], tree["env"]["BASE"])
    (kept,) = (step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
    assert f"{seen[0].output}/report.html" in kept


@pytest.mark.usefixtures("unrendered")
def test_the_pytest_example_lets_a_forgetful_model_pass_and_stops_another(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (at / "unlearning").mkdir()
    for name, file in (("forget", "forget"), ("retain", "retain"), ("others", "attack")):
        (at / "unlearning" / f"{name}.jsonl").symlink_to(at / f"{file}.jsonl")
    monkeypatch.setitem(SUITES, "quick", {"quantise": {"bits": [8], "groups": [32]}})
    monkeypatch.setenv("BASE", "taught")
    example = runpy.run_path(str(EXAMPLES / "test_forgotten.py"))["test_the_model_has_forgotten"]
    monkeypatch.setenv("MODEL", "fresh")
    example(tmp_path / "fresh-run")
    monkeypatch.setenv("MODEL", "taught")
    with pytest.raises(AssertionError, match="NOT FORGOTTEN"):
        example(tmp_path / "taught-run")
