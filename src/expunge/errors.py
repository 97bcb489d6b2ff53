"""One tree of errors, each with an exit code, and each saying what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class ExpungeError(Exception):
    """Base of every error that a user can meet.

    Args:
        what: what was wrong, as a sentence.
        where: the file, line, key or value at fault.
        fix: what to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(" ".join(filter(None, [what, f"({where})" if where else "", fix])))


class InputError(ExpungeError):
    """Usage or input is wrong; exit code 1."""

    exit_code = 1


class InternalError(ExpungeError):
    """A promise of our own is broken; exit code 2."""


class NonFiniteLoss(ExpungeError):
    """The loss or its gradient became NaN or infinite; the last good state is kept. Exit code 2."""


class ResourceError(ExpungeError):
    """Disk or memory ran out; exit code 3."""

    exit_code = 3


class VerdictBelow(ExpungeError):
    """The verdict is at or below the level of `--fail-on`; exit code 10."""

    exit_code = 10


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names the closest valid name, and all of them."""
    known = sorted(names)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(known)}."
