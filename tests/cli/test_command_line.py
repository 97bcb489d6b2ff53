"""The contract of the command line: what it writes, what it prints, how it leaves."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from audits import Expunge, write
from expunge.data.example import Example


@pytest.fixture
def words(
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_examples: tuple[Example, ...],
) -> list[str | Path]:
    """A valid `unlearn` command on a tiny model; its output is tmp_path / "run"."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    command: list[str | Path] = ["unlearn", "--model", tmp_path / "model"]
    command += ["--forget", write(tmp_path / "forget.jsonl", tiny_examples[:3])]
    command += ["--retain", write(tmp_path / "retain.jsonl", tiny_examples[3:6])]
    command += ["--attack", write(tmp_path / "attack.jsonl", tiny_examples[6:])]
    return [*command, "--method", "ssiuu", "--set", "max_steps=2", "--output", tmp_path / "run"]


def replaced(words: list[str | Path], option: str, value: str | Path) -> list[str | Path]:
    at = words.index(option) + 1
    return [*words[:at], value, *words[at + 1 :]]


def test_the_whole_way(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert expunge(*words) == 0
    AutoModelForCausalLM.from_pretrained(run / "model", trust_remote_code=False)
    assert not (run / "checkpoints").exists()
    sizes = ("--set", "max_steps=2", "--set", "eval_every=1", "--set", "learning_rates=[1e-3]")
    assert expunge("attack", run, "--attacks", "relearn-harmful,relearn-related", *sizes) == 0
    again = ("--set", "relearn-harmful@half.fraction=0.5", "--set", "bits=[4]")
    assert expunge("attack", run, "--attacks", "relearn-harmful@half,quantise", *sizes, *again) == 0
    assert expunge("audit", run) == 0
    record = json.loads((run / "record.json").read_text())
    assert record["verdict"] in ("ERASED", "HIDDEN", "NOT FORGOTTEN", "BROKEN", "INCONCLUSIVE")
    for split in ("forget", "retain", "test"):
        for moment in ("before", "after"):
            assert {"accuracy", "log_odds", "chance"} <= record["scores"][split][moment].keys()
    assert {"name", "accuracy", "log_odds", "recovery"} <= record["attacks"][0].keys()
    assert {"extraction_strength", "mia_loss", "model_utility"} <= {row["name"] for row in record["metrics"]["rows"]}
    attacks = {attack["name"]: attack for attack in record["attacks"]}
    assert sorted(attacks) == ["quantise", "relearn-harmful", "relearn-harmful@half", "relearn-related"]
    assert attacks["relearn-harmful@half"]["settings"]["fraction"] == 0.5
    assert attacks["quantise"]["budget"] == "4 variants"
    assert [point["variant"] for point in attacks["quantise"]["curve"]][:2] == ["as it is", "int4, groups of 32"]
    assert attacks["quantise"]["best"]["variant"] in (run / "report.html").read_text()
    assert max(point["recovery"] for point in attacks["quantise"]["curve"]) == attacks["quantise"]["recovery"]
    assert "relearn-benign" in record["verdict_details"]["untried"]
    assert {"erased", "hidden"} <= record["influence"].keys()
    assert {"seconds", "peak_bytes", "steps"} <= record["cost"].keys()
    assert str(tmp_path) not in (run / "record.json").read_text()
    assert expunge("verify", run) == 0
    assert expunge("report", run) == 0
    assert expunge("audit", run, "--fail-on", "inconclusive") == 10
    assert "INCONCLUSIVE" in capsys.readouterr().out or record["verdict"] != "INCONCLUSIVE"
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    assert expunge("verify", run) == 1


def test_questions_without_options_and_a_chat_template(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bare questions and answers are enough: wrong options come from the other answers, prompts from the template."""
    for name in ("forget", "retain", "attack"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        bare = [{"question": row["prompt"], "answer": row["answer"]} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "template": "chat",
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain", "attack")},
        "unlearn": {"max_steps": 1},
        "attacks": {"relearn-related": {"max_steps": 1, "eval_every": 1, "learning_rates": [1e-3]}},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with caplog.at_level(logging.WARNING):
        assert expunge("run", tmp_path / "recipe.yaml") == 0
    assert "3 of 3 questions bring no wrong options" in caplog.text
    stored = [json.loads(line) for line in (tmp_path / "run" / "request" / "forget.jsonl").read_text().splitlines()]
    assert all(len(row["options"]) == 2 and "Question:" not in row["prompt"] for row in stored)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["scores"]["forget"]["before"]["chance"] == pytest.approx(1 / 3)
    assert record["influence_log_odds"]["of"] == "log_odds"


def test_a_finished_run_is_kept_for_its_own_recipe_alone(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither another recipe nor another version's method of the same name gets the old result for its own."""
    run = tmp_path / "run"
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain", "attack")},
        "method": "graddiff",
        "unlearn": {"max_steps": 1},
        "attacks": {"relearn-related": {"max_steps": 1, "eval_every": 1, "learning_rates": [1e-3]}},
        "output": str(run),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert expunge("run", tmp_path / "recipe.yaml") == 0
    made = (run / "model" / "model.safetensors").stat().st_mtime_ns
    assert expunge("run", tmp_path / "recipe.yaml") == 0
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == made
    before = (run / "record.json").read_bytes()
    capsys.readouterr()
    assert expunge("run", tmp_path / "recipe.yaml", "--set", "method=npo") == 1
    assert "only the same recipe" in " ".join(capsys.readouterr().err.split())
    training = json.loads((run / "training.json").read_text())
    assert training["parts"]["objective"] == json.loads(before)["recipe"]["objective"]
    training["parts"]["objective"] = "GradDiff(retain_weight=7.0)"
    (run / "training.json").write_text(json.dumps(training))
    assert expunge("run", tmp_path / "recipe.yaml") == 1
    assert (run / "record.json").read_bytes() == before
    assert expunge("audit", run) == 0
    assert json.loads((run / "record.json").read_text())["recipe"]["objective"] == "GradDiff(retain_weight=7.0)"


def test_a_grid_of_methods_and_seeds(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run leaves its record and not its weights; a second call makes nothing anew."""
    grid = {
        "model": str(tmp_path / "model"),
        "methods": {"graddiff": None, "shorter": {"method": "npo", "unlearn": {"max_steps": 1}}},
        "seeds": [0, 1],
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain", "attack")},
        "unlearn": {"max_steps": 2},
        "attacks": {"relearn-related": {"max_steps": 1, "eval_every": 1, "learning_rates": [1e-3]}},
        "output": str(tmp_path / "grid"),
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    assert expunge("run", tmp_path / "grid.yaml", "--methods", "shorter", "--seeds", "1") == 0
    assert {path.name for path in (tmp_path / "grid" / "records").iterdir()} == {"shorter-1.json", "shorter-1.yaml"}
    assert expunge("run", tmp_path / "grid.yaml", "--methods", "shorter", "--fail-on", "inconclusive") == 10
    for _ in range(2):
        assert expunge("run", tmp_path / "grid.yaml") == 0
        shown = capsys.readouterr().out
        assert "shorter" in shown
        assert "related" in shown
    names = {path.name for path in (tmp_path / "grid" / "records").iterdir()}
    assert names == {
        f"{name}-{seed}.{end}" for name in ("graddiff", "shorter") for seed in (0, 1) for end in ("json", "yaml")
    }
    assert not list((tmp_path / "grid").glob("*/model"))
    assert expunge("report", tmp_path / "grid" / "records" / "shorter-1.json") == 1
    assert "need a page of their own" in capsys.readouterr().err
    rows = json.loads((tmp_path / "grid" / "table.json").read_text())
    assert [(row["method"], row["attack"], row["seeds"]) for row in rows] == [
        ("graddiff", "related", [0, 1]),
        ("shorter", "related", [0, 1]),
    ]
    assert "shorter" in (tmp_path / "grid" / "report.html").read_text()
    assert expunge("run", tmp_path / "grid.yaml", "--methods", "short") == 1
    assert "shorter" in capsys.readouterr().err
    (tmp_path / "grid.yaml").write_text(json.dumps({**grid, "unlearn": {"max_steps": 3}}))
    assert expunge("run", tmp_path / "grid.yaml") == 1
    del grid["methods"], grid["seeds"]
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    assert expunge("run", tmp_path / "grid.yaml", "--seeds", "1") == 1
    assert "no grid" in capsys.readouterr().err


def test_a_run_that_diverges_at_once_leaves_nothing_in_the_way(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "diverged"
    given = replaced(replaced(words, "--output", run), "--set", "max_steps=6")
    assert expunge(*given, "--set", "stop_log_odds=null", "--set", "learning_rate=1e30") == 2
    assert "Lower the learning rate" in " ".join(capsys.readouterr().err.split())
    assert not run.exists()


@pytest.mark.slow
def test_several_processes_unlearn_and_one_tells(words: list[str | Path], tmp_path: Path) -> None:
    """Half as many rows on each of two processes make the steps of one, and one of them writes and speaks."""
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain", "attack")},
        "unlearn": {"max_steps": 2, "stop_log_odds": None, "per_device_train_batch_size": 2},
        "attacks": {"relearn-related": {"max_steps": 1, "eval_every": 1, "learning_rates": [1e-3]}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = ["-m", "expunge", "run", tmp_path / "recipe.yaml", "--set"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = [sys.executable, *run, "unlearn.per_device_train_batch_size=4", "--output", tmp_path / "one"]
    pair = [*launch, *run, "unlearn.per_device_train_batch_size=2", "--output", tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (alone, pair):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report:") == 1
    one, two = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two"))
    assert one["scores"]["forget"]["after"]["log_odds"] == pytest.approx(
        two["scores"]["forget"]["after"]["log_odds"], abs=1e-4
    )


def spoil(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("option", "spoilt", "says"),
    [
        ("--forget", lambda at: at / "none.jsonl", "none.jsonl"),
        ("--forget", lambda at: spoil(at / "empty.jsonl", ""), "empty.jsonl"),
        ("--forget", lambda at: spoil(at / "bad.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt"\n'), "2"),
        ("--forget", lambda at: at / "retain.jsonl", "overlap"),
        ("--forget", lambda at: spoil(at / "blank.jsonl", '{"prompt": "where", "answer": " "}\n'), "answer"),
        ("--method", lambda at: "graddif", "'graddiff'"),
        ("--set", lambda at: "max_step=2", "'max_steps'"),
        ("--set", lambda at: "max_steps=two", "max_steps"),
        ("--set", lambda at: "max_steps", "NAME=VALUE"),
        ("--model", lambda at: at / "forget.jsonl", "forget.jsonl"),
        ("--model", lambda at: at / "nowhere", "nowhere"),
    ],
)
def test_bad_input_leaves_one_message_code_1_and_nothing_else(
    expunge: Expunge,
    words: list[str | Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    spoilt: Callable[[Path], str | Path],
    says: str,
) -> None:
    assert expunge(*replaced(words, option, spoilt(tmp_path))) == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert says in told.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_left_alone(
    expunge: Expunge, words: list[str | Path], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert expunge(*words) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [["unlearn"], ["nonsense"], ["audit"], ["list", "cats"], ["attack", "nowhere"]])
def test_usage_errors_leave_with_1(expunge: Expunge, wrong: list[str]) -> None:
    assert expunge(*wrong) == 1


def test_an_option_given_twice_is_refused_before_anything_is_lost(
    expunge: Expunge, words: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two forget sets the first would stay in the model in silence; options that repeat may."""
    for command in (words, ["request", "add", "--ledger", tmp_path / "ledger", "--forget", "one.jsonl"]):
        assert expunge(*command, "--forget", "two.jsonl") == 1
        assert re.search(r"'--forget'.*given 2 times", " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ledger").exists()
    assert expunge(*words, "--set", "max_steps=3") == 1
    assert "'max_steps' is set twice" in capsys.readouterr().err
    assert expunge(*words, "--set", "stop_log_odds=null") == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [("methods", "ssiuu"), ("attacks", "relearn-harmful"), ("suites", "thorough"), ("benchmarks", "world_facts")],
)
def test_lists(expunge: Expunge, capsys: pytest.CaptureFixture[str], kind: str, name: str) -> None:
    assert expunge("list", kind) == 0
    assert name in capsys.readouterr().out


def test_help_is_quick_and_light() -> None:
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        told = subprocess.run([sys.executable, "-m", "expunge", "--help"], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert "unlearn" in told.stdout
    assert best < 1.0  # 0.17 s on an idle machine; the promise is 0.5 s
    code = "import sys; sys.argv = ['expunge', '--help']\nimport atexit, expunge.cli\n"
    code += "atexit.register(lambda: print('torch' in sys.modules))\nexpunge.cli.main()"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith("False")
