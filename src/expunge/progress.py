"""What long work tells whoever watches it; the library itself stays silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A watcher of named tasks with a known length."""

    def start(self, task: str, total: int) -> None:
        """Announce `task` of `total` units."""

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        """Count `n` units of `task` as done; `info` holds numbers worth showing (loss, accuracy)."""

    def finish(self, task: str) -> None:
        """Close `task`, whether or not it reached its total."""


class Silent:
    """The default watcher: ignores everything."""

    def start(self, task: str, total: int) -> None:
        """Ignore."""

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        """Ignore."""

    def finish(self, task: str) -> None:
        """Ignore."""


class Named:
    """Tells another watcher of the same tasks under longer names, so that one of many runs is known.

    Args:
        watcher: who is told.
        name: put before each task's.
    """

    def __init__(self, watcher: Progress, name: str) -> None:
        self._watcher, self._name = watcher, name

    def start(self, task: str, total: int) -> None:
        """Announce."""
        self._watcher.start(f"{self._name}: {task}", total)

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        """Count."""
        self._watcher.advance(f"{self._name}: {task}", n, **info)

    def finish(self, task: str) -> None:
        """Close."""
        self._watcher.finish(f"{self._name}: {task}")
