"""The rows that earlier requests removed, beside a model: `block.7` -> W_old [r, d], as a safetensors file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import InputError
from expunge.models.storage import TEMPORARY, disk_errors


def save_rows(path: Path, rows: Mapping[int, Tensor]) -> None:
    """Write rows by the index of their block; a reader sees the old file or the new one, never a part.

    Raises:
        ResourceError: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(TEMPORARY + path.name)
        save_file({f"block.{block}": value.detach().cpu().contiguous() for block, value in rows.items()}, work)
        work.replace(path)


def load_rows(path: Path) -> dict[int, Tensor]:
    """The rows by the index of their block; InputError for a file that is absent or something else."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError("The rows of earlier requests cannot be read.", str(path), f"{error}") from error
    found: dict[int, Tensor] = {}
    for name, value in tensors.items():
        key = re.fullmatch(r"block\.(\d+)", name)
        if key is None or value.ndim != 2:
            raise InputError("This is no file of a projection's rows.", f"{path}: {name} {list(value.shape)}")
        found[int(key[1])] = value
    return found
