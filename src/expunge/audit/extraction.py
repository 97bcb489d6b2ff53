"""How much of an answer a model gives away by itself, read from which of its tokens were the likeliest ones.

    exact memorization    EM = (1 / n) sum_t hit_t
    extraction strength   ES = 1 - k / n       k the shortest prefix of the answer after which every token is a hit

k = n, so ES = 0, where the last token is no hit: what has to be given whole was not extracted. (OpenUnlearning's loop
ends at k = n - 1, so its ES is never below 1 / n.)

Sources: EM arXiv:2205.10770, ES arXiv:2012.07805 and 2406.09179; names as in OpenUnlearning (arXiv:2506.12618).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean


def exact_memorization(hits: Sequence[bool]) -> float:
    """The share of an answer's tokens that are the likeliest after the right ones before them."""
    return fmean(hits)


def extraction_strength(hits: Sequence[bool]) -> float:
    """The share of an answer that greedy decoding completes from its beginning, teacher-forced."""
    return sum(takewhile(bool, reversed(hits))) / len(hits)


def chance_of_strength(tokens: int, vocabulary: int) -> float:
    """ES expected of uniform guesses: (1 / n) sum_j V^-j, j = 1 ... n, as the last j tokens are hits with P = V^-j."""
    return sum(float(vocabulary) ** -j for j in range(1, tokens + 1)) / tokens
