"""Tasks of EleutherAI's lm-evaluation-harness on local files, for those who want the unlearned model's usual scores.

A task is one of lm-eval's YAML files whose data lie on this machine (`dataset_path: json` and `data_files` among
`dataset_kwargs`), so that nothing is fetched. Such a file may call Python functions beside it: run only your own. What
comes back is cut to what the same model and tasks always give, so that equal runs leave equal files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from expunge.errors import InputError, unreadable
from expunge.models.checkpoint import atomic_write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE: Final = "lm_eval.json"
KEPT: Final = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
INSTALL: Final = "pip install lm-eval"


@dataclass(frozen=True)
class Link:
    """A file of results, its sha256 and its tasks: what the record says of it."""

    file: str
    sha256: str
    tasks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class _Names(yaml.SafeLoader):
    """Reads a task file without running what its tags (`!function`) name."""


_Names.add_multi_constructor("!", lambda loader, suffix, node: None)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Path | str],
    folder: Path,
    batch_size: int = 8,
) -> Link:
    """Run the task files on `model`, write `lm_eval.json` into `folder`, and say what the record links.

    Raises:
        InputError: see `require`.
    """
    names = require(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    places = sorted({str(Path(task).resolve().parent) for task in tasks})
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=names,
        task_manager=TaskManager(include_path=places, include_defaults=False),
        log_samples=False,
    )
    told = {name: found[name] for name in KEPT if name in found}
    told["task_files"] = {
        name: hashlib.sha256(Path(task).read_bytes()).hexdigest() for name, task in zip(names, tasks, strict=True)
    }
    text = json.dumps(told, sort_keys=True, indent=1, default=str) + "\n"
    atomic_write_text(folder / FILE, text)
    return _link(text)


def require(tasks: Sequence[Path | str]) -> list[str]:
    """The names of the tasks, without any work done.

    Raises:
        InputError: lm-eval is not installed, or a file is missing or names no task.
    """
    if tasks and find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed.", "--lm-eval", f"Install it: {INSTALL}")
    return [task_name(Path(task)) for task in tasks]


def linked(folder: Path) -> Link | None:
    """What the record says of the results in `folder`; None where there are none.

    Raises:
        InputError: the file is not what `evaluate` writes.
    """
    if not (folder / FILE).is_file():
        return None
    text = (folder / FILE).read_text(encoding="utf-8")
    try:
        return _link(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("The results of lm-eval are damaged.", str(folder / FILE), "Audit again.") from error


def task_name(path: Path) -> str:
    """The name under which lm-eval knows the task in a file; InputError where there is none."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Names)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"This task file cannot be read: {unreadable(error)}.", str(path)) from error
    except yaml.YAMLError as error:
        raise InputError("This task file cannot be read.", str(path), "Give YAML files of lm-eval.") from error
    name = (tree.get("task") or tree.get("group")) if isinstance(tree, dict) else None
    if not isinstance(name, str):
        raise InputError("This file names no task.", str(path), "A task file of lm-eval has the key `task`.")
    return name


def _link(text: str) -> Link:
    tasks = tuple(sorted(json.loads(text)["task_files"].keys()))
    return Link(FILE, hashlib.sha256(text.encode()).hexdigest(), tasks)
