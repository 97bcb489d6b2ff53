"""Whether a text says a phrase: whole words, whatever their case, accents and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of `text`, in small letters and without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return tuple(re.findall(r"[^\W_]+", plain))


def place(phrase: Words, text: Words) -> int | None:
    """Where in `text` the words of `phrase` stand for the first time, one after another; None for an empty phrase."""
    starts = range(len(text) - len(phrase) + 1) if phrase else ()
    return next((start for start in starts if text[start : start + len(phrase)] == phrase), None)


def first_said(phrases: Sequence[Words], text: Words) -> int | None:
    """Which of `phrases` `text` says first; of two that begin at one word, the longer.

    None where it says none of them, or where two that are the same come first: then it says neither rather than other.
    """
    found = [(start, -len(phrase), i) for i, phrase in enumerate(phrases) if (start := place(phrase, text)) is not None]
    if not found:
        return None
    first = min(found)
    return first[2] if sum(each[:2] == first[:2] for each in found) == 1 else None
