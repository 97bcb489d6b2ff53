"""lm-eval behind its door: what it is asked, what is kept of its answer, and what is said where it is absent."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.lm_eval import evaluate, linked, require, task_name
from expunge.errors import InputError

TASK = """task: towns
dataset_path: json
dataset_kwargs: {data_files: towns.jsonl}
process_docs: !function own.process
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "tasks" / "towns.yaml"
    path.parent.mkdir()
    path.write_text(TASK)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for lm-eval that notes what it is asked."""
    seen: dict[str, Any] = {}
    package, models, huggingface, tasks = (
        ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks")
    )

    def simple_evaluate(**words: Any) -> dict[str, Any]:
        seen.update(words)
        return {
            "results": {"towns": {"acc,none": 0.5, "alias": "towns"}},
            "versions": {"towns": 1.0},
            "configs": {"towns": {"process_docs": print}},
            "date": 1234.5,
        }

    package.__spec__ = ModuleSpec("lm_eval", None)
    package.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    huggingface.HFLM = lambda **words: words  # type: ignore[attr-defined]
    tasks.TaskManager = lambda **words: words  # type: ignore[attr-defined]
    for module in (package, models, huggingface, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_results_are_written_beside_the_record_and_linked(
    task: Path,
    asked: dict[str, Any],
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    link = evaluate(tiny_model, tiny_tokenizer, [task], tmp_path)
    assert asked["tasks"] == ["towns"]
    assert asked["model"]["pretrained"] is tiny_model and asked["model"]["tokenizer"] is tiny_tokenizer
    assert asked["task_manager"] == {"include_path": [str(task.parent.resolve())], "include_defaults": False}
    file = tmp_path / link.file
    told = json.loads(file.read_text())
    assert told["results"]["towns"]["acc,none"] == 0.5
    assert told["task_files"] == {"towns": hashlib.sha256(TASK.encode()).hexdigest()}
    assert link.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() and link.tasks == ("towns",)
    assert linked(tmp_path) == link
    # the time and live objects would make every run differ
    assert not {"date", "configs"} & told.keys()


def test_without_lm_eval_the_way_to_it_is_told(
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install lm-eval"):
        evaluate(tiny_model, tiny_tokenizer, [task], tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert require([]) == []


def test_a_task_file_is_read_without_running_it(task: Path, tmp_path: Path) -> None:
    assert task_name(task) == "towns"
    bad = tmp_path / "bad.yaml"
    for text, said in (("- a", "names no task"), ("task: [", "cannot be read"), ("dataset_path: json", "no task")):
        bad.write_text(text)
        with pytest.raises(InputError, match=said):
            task_name(bad)
    with pytest.raises(InputError, match="cannot be read"):
        task_name(tmp_path / "absent.yaml")


def test_damaged_results_are_told(tmp_path: Path) -> None:
    assert linked(tmp_path) is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "lm_eval.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            linked(tmp_path)
