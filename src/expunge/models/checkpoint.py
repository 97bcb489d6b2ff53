"""Checkpoints and models on disk: saved whole, hashed, and read back only when every hash agrees."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import InternalError
from expunge.models.projections import FILE, attached, save_rows
from expunge.models.storage import atomic_folder, atomic_write_text, folder_hashes, remove_leftovers, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Checkpoint",
    "atomic_write_text",
    "folder_hashes",
    "newest_checkpoint",
    "save_checkpoint",
    "save_pretrained_atomic",
]

_log = logging.getLogger(__name__)
_TENSORS, _MANIFEST = "tensors.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        path: its folder.
        step: the number given to `save_checkpoint`.
        tensors: all tensors, on the CPU; names that shared memory when saved share it again.
        meta: the JSON object given to `save_checkpoint`.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """The new folder `step-XXXXXXXX` below `folder`; older ones beyond `keep` are deleted afterwards.

    `meta` must be plain JSON; whatever is not (random states, optimizer moments) belongs into `tensors`.

    Raises:
        ResourceError: the disk is full; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    target = _free_name(folder, step)
    with atomic_folder(target) as work:
        unique, aliases = _without_sharing(tensors)
        save_file(unique, work / _TENSORS)
        body = {"step": step, "meta": dict(meta), "aliases": aliases, "sha256": sha256(work / _TENSORS)}
        text = json.dumps(body, sort_keys=True)
        (work / _MANIFEST).write_text(json.dumps({"body": text, "sha256": _digest(text)}), encoding="utf-8")
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes agree, or None; damaged ones are skipped with a warning."""
    for path in _newest_first(folder):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("Skipped the damaged checkpoint %s: %s", path, error)
    return None


def save_pretrained_atomic(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an ordinary Hugging Face folder of `model` and `tokenizer`, replacing what was at `folder`.

    `AutoModelForCausalLM.from_pretrained(folder)` gives the same logits bit for bit in the same dtype.

    Raises:
        ResourceError: the disk is full.
        InternalError: adapters are still in the model; merge them first.
    """
    from expunge.models.quiet import quiet

    adapted = [name for name, _ in model.named_parameters() if ".base_layer." in name]
    if adapted:
        raise InternalError("A model with unmerged adapters cannot be saved as an ordinary one.", adapted[0])
    use_cache = model.config.use_cache
    try:
        model.config.use_cache = True  # we switch it off for training; whoever loads the folder wants to generate
        with quiet(), atomic_folder(folder) as work:
            model.save_pretrained(work)
            if rows := attached(model):
                save_rows(work / FILE, rows)
            tokenizer.save_pretrained(work)
    finally:
        model.config.use_cache = use_cache


def _read(path: Path) -> Checkpoint:
    manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    if _digest(manifest["body"]) != manifest["sha256"]:
        raise ValueError("the manifest does not match its hash")
    body = json.loads(manifest["body"])
    if sha256(path / _TENSORS) != body["sha256"]:
        raise ValueError("the tensors do not match their hash")
    tensors = load_file(path / _TENSORS)
    tensors.update({name: tensors[kept] for name, kept in body["aliases"].items()})
    return Checkpoint(path, body["step"], tensors, body["meta"])


def _without_sharing(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to write, none sharing memory, and a map from each name left out to the equal one kept."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in seen:
            aliases[name] = seen[view]
        else:
            seen[view] = name
            unique[name] = tensor.detach()
    return _own_memory(unique), aliases


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, contiguous, and copied where two are different views of one storage."""
    taken: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and storage not in taken
        result[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage)
    return result


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _free_name(folder: Path, step: int) -> Path:
    """A name nothing has yet, so that saving a step again never opens a moment without the first copy."""
    attempts = [path.name for path in _newest_first(folder) if _order(path)[0] == step]
    suffix = f"-{_order(folder / attempts[0])[1] + 1}" if attempts else ""
    return folder / f"step-{step:08d}{suffix}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(_checkpoints(folder.glob("step-*")), key=_order, reverse=True)


def _checkpoints(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if path.is_dir() and all(part.isdigit() for part in path.name.split("-")[1:]))


def _order(path: Path) -> tuple[int, int]:
    """Step and attempt of a checkpoint folder's name."""
    _, step, *attempt = path.name.split("-")
    return int(step), int(attempt[0]) if attempt else 0
