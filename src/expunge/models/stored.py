"""The weights of a model on disk, read one by one beside another model of the same kind in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from expunge.errors import InputError
from expunge.models.load import load_model, model_folder

Reader = Callable[[str], Tensor]
"""Gives a parameter by its name in the model."""


def read_weights(path: str | Path, model: PreTrainedModel) -> Reader:
    """The parameters of the model at `path` by the names that those of `model` have, in the shapes of those.

    A bias that it lacks is given as zeros. Where the files use other names than the model, the whole of it is loaded,
    and is in memory as long as the reader.

    Raises:
        InputError: there is no such model; from the reader, it has no such weight, or one of another shape.
    """
    wanted = dict(model.named_parameters())
    read = _from_files(model_folder(path), wanted) or _from_model(path)

    def checked(name: str) -> Tensor:
        tensor, like = read(name), wanted[name]
        if tensor is None and name.endswith(".bias"):
            return like.new_zeros(like.shape)
        if tensor is None or tensor.shape != like.shape:
            what = f"The model has no weight like {name} {list(like.shape)}."
            raise InputError(what, str(path), "Give the model that the other one was made from.")
        return tensor

    return checked


_Found = Callable[[str], Tensor | None]


def _from_files(folder: Path, wanted: Iterable[str]) -> _Found | None:
    """Reads from the files of `folder`, unless these do not have what is wanted, biases aside."""
    files = _files(folder)
    if any(name not in files and not name.endswith(".bias") for name in wanted):
        return None

    def read(name: str) -> Tensor | None:
        if name not in files:
            return None
        with safe_open(files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return read


def _files(folder: Path) -> dict[str, Path]:
    """In which file each tensor is."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in names.items()}
    whole = folder / "model.safetensors"
    if not whole.is_file():
        return {}
    with safe_open(whole, framework="pt") as file:
        return dict.fromkeys(file.keys(), whole)


def _from_model(path: str | Path) -> _Found:
    return dict(load_model(path).model.named_parameters(remove_duplicate=False)).get
