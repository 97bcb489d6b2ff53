"""Finished cells of an attack's grid, kept so that an interrupted attack goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from expunge.errors import InputError
from expunge.models.checkpoint import atomic_write_text

logger = logging.getLogger(__name__)

Cells = MutableMapping[str, dict[str, Any]]
"""From a cell's key, which names everything that it depends on, to its JSON."""


def fingerprint(parts: object) -> str:
    """Sixteen hexadecimal digits of all that a cell depends on, given as plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class FolderCells(Cells):
    """One JSON file per cell in `folder`, each whole or absent; a damaged one counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, key: str) -> dict[str, Any]:
        path = self._path(key)
        if not path.is_file():
            raise KeyError(key)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("The stored cell %s is damaged and will be run again: %s", path, error)
            raise KeyError(key) from error
        if not isinstance(value, dict):
            logger.warning("The stored cell %s is damaged and will be run again.", path)
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self._path(key), json.dumps(value, allow_nan=False) + "\n")

    def __delitem__(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"\w[\w.+-]*", key):
            raise InputError("A cell's key must be usable as a file name.", repr(key))
        return self.folder / f"{key}.json"


def open_cells(cells: Cells | Path | None) -> Cells:
    """A mapping to keep cells in: the one given, the folder given, or a fresh one that nobody reads again."""
    if cells is None:
        return {}
    return FolderCells(cells) if isinstance(cells, Path) else cells
