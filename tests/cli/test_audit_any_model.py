"""`expunge audit MODEL --base BASE`: any two checkpoints, no knowledge of how they were made, and one alone."""

from __future__ import annotations

import json
import logging
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import cli, comparison, pipeline
from expunge.attacking import choose
from expunge.attacks.quantise import Quantise
from expunge.attacks.relearn import Relearn
from expunge.attacks.suites import SUITES
from expunge.attacks.trials import Trials
from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.storage import folder_hashes
from expunge.recipe import Comparison
from expunge.report import html
from expunge.settings import parse_yaml
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
Expunge = Callable[..., int]
SMALL = ["--attacks", "quick", "--set", "learning_rates=[1e-3]", "--set", "max_steps=2", "--set", "groups=[32]"]


@pytest.fixture
def expunge(monkeypatch: pytest.MonkeyPatch) -> Expunge:
    """Run the command line in this process and return its exit code."""

    def run(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        return int(leaving.value.code or 0)

    return run


def facts() -> tuple[Example, ...]:
    """Sixteen, which is what a verdict needs: the eight people in two wordings."""
    people = make_tiny_examples()
    return (*people, *(replace(e, prompt=f"question : {e.subject} lives in the town", id="") for e in people))


def write(path: Path, examples: Sequence[Example]) -> Path:
    path.write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples))
    return path


def save(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(path)
    (tokenizer or make_tiny_tokenizer()).save_pretrained(path)
    return path


def teach(model: LlamaForCausalLM, examples: Sequence[Example]) -> LlamaForCausalLM:
    encoder = Encoder(make_tiny_tokenizer())
    batch = collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        (-answer_log_probs(model, batch).token.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`taught` knows the facts; `fresh` and `other` never saw them; `files` are beside them."""
    at = tmp_path_factory.mktemp("checkpoints")
    save(at / "taught", teach(make_tiny_model(), facts()))
    save(at / "fresh", make_tiny_model())
    save(at / "other", make_tiny_model(seed=1))
    write(at / "forget.jsonl", facts())
    write(at / "retain.jsonl", [Example(f"w{i}", f"w{i + 1}", (f"w{i + 2}", f"w{i + 3}")) for i in range(4)])
    write(at / "attack.jsonl", [Example(f"where does w{i} live ?", "oslo", ("lima", "rome")) for i in range(10, 14)])
    return at


@pytest.fixture
def at(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with links to the checkpoints and files, from which commands are run."""
    for path in checkpoints.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page is drawn: that takes longer than all else."""
    monkeypatch.setattr(html, "render", lambda records: f"the page of {len(records)}")


def audit(expunge: Expunge, model: str, *words: str | Path) -> int:
    return expunge("audit", model, "--forget", "forget.jsonl", *words)


def record_of(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "record.json").read_text()))


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
    assert made == ["relearn-related", "quantise"]
    capsys.readouterr()


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
