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
