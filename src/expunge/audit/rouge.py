"""ROUGE-L recall of an answer (Lin 2004): the share of the reference's words that appear in it in order."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[^a-z0-9]+")


def rouge_l_recall(reference: str, candidate: str) -> float:
    """Longest common subsequence of words divided by the reference's words, in [0, 1]; 0 where one has no words.

    Words are those of the `rouge-score` package: lower case, everything but a-z and 0-9 separates. Text in another
    script therefore has no words and scores 0.
    """
    wanted, given = words(reference), words(candidate)
    return longest_common_subsequence(wanted, given) / len(wanted) if wanted else 0.0


def words(text: str) -> list[str]:
    """Lower-case alphanumeric words of `text`."""
    return [word for word in _SEPARATORS.split(text.lower()) if word]


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence of words found in both in the same order; O(len(first) * len(second))."""
    row = [0] * (len(second) + 1)
    for word in first:
        above = row
        row = [0]
        for column, other in enumerate(second, start=1):
            row.append(above[column - 1] + 1 if word == other else max(above[column], row[-1]))
    return row[-1]
