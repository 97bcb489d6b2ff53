"""Tensors by name in a safetensors file that is whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import InputError
from expunge.models.storage import TEMPORARY, disk_errors


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; a reader sees the old file or the new one, never a part.

    Raises:
        ResourceError: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(TEMPORARY + path.name)
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, work)
        work.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors; InputError for a file that is absent or something else."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError("What earlier requests left cannot be read.", str(path), f"{error}") from error
