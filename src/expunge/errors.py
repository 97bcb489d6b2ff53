"""One tree of errors, each with an exit code, and each saying what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar, Final

SETTINGS_PAGE: Final = "docs/reference/recipe.md"
"""Where every setting is listed."""


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


class NotANumber(InputError):
    """A model answers with NaN; exit code 1."""


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


def closest(name: str, names: Iterable[str]) -> str | None:
    """The valid name that `name` was most likely meant to be: spelt alike, or shortened to initials (`lr`)."""
    known = sorted(names)
    alike = get_close_matches(name, known, n=1, cutoff=0.5)
    short = [each for each in known if "".join(word[:1] for word in each.split("_")) == name]
    return next(iter([*alike, *short]), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names the closest valid name, and all of them."""
    known = sorted(names)
    close = closest(name, known)
    guess = f"Did you mean {close!r}? " if close else ""
    return f"{guess}Known: {', '.join(known)}."


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be used, as the end of a sentence, without the system's error number."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return error.strerror.lower() if error.strerror else str(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch tells that of main memory only in words."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "can't allocate memory" in words or "out of memory" in words
