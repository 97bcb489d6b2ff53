"""Wrong options for questions that bring none: answers to the questions worded most alike.

    rank = (trained to be forgotten or relearnt?, - |words in common| / |words of both|, draw by seed)

A score over options needs wrong answers of the same kind. Answers of what stays come first, because unlearning and
attacks move those of what goes; among them the wording tells the kind: "What is the capital of ..." asks for a town.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from expunge.data.example import Example
from expunge.errors import InputError

N_OPTIONS: Final = 2
"""Wrong options per question, as in arXiv:2502.19207: chance is 1/3."""

POOL: Final = 256
"""Most questions of either side whose answers are looked at."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    prompt: str
    answer: str
    words: frozenset[str]
    moved: int


def with_options(
    examples: Sequence[Example],
    stays: Iterable[Example],
    goes: Iterable[Example],
    *,
    seed: int = 0,
    n: int = N_OPTIONS,
) -> tuple[Example, ...]:
    """`examples`; those without options, but with a prompt, get `n` of them, or as many as there are.

    A true answer to the same prompt is no wrong option, nor is one that contains the right answer or is part of it.

    Args:
        examples: some of `stays` or `goes`, or others.
        stays: questions whose answers no training moves; their answers are taken first.
        goes: questions whose answers are unlearned or relearnt.
        seed: decides between questions worded equally alike.
        n: wrong options per question.
    """
    pool = [
        _Candidate(e.prompt, e.answer.strip(), _words(e.prompt), moved)
        for moved, source in enumerate((stays, goes))
        for e in _some([e for e in source if e.prompt], seed)
    ]
    return tuple(e if e.options or not e.prompt else replace(e, options=_draw(e, pool, seed, n)) for e in examples)


def require_options(forget: Iterable[Example]) -> None:
    """InputError unless every fact to forget asks something and has a wrong option, without which nothing can be told
    from a guess."""
    for example in forget:
        if example.options and example.prompt:
            continue
        if not example.prompt:
            raise InputError(
                "A text without a question cannot be asked for, so nobody can tell what a model knows of it.",
                repr(example.answer[:60]),
                "Ask for what it says, in questions with answers.",
            )
        raise InputError(
            "A fact to forget has no wrong options, and there are too few other answers to draw them from.",
            repr(example.prompt[:60]),
            'Give it "options", or give --retain facts of the same kind.',
        )


def _some(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    return examples if len(examples) <= POOL else random.Random(seed).sample(examples, POOL)


def _draw(example: Example, pool: Sequence[_Candidate], seed: int, n: int) -> tuple[str, ...]:
    words, answer = _words(example.prompt), example.answer.strip().casefold()
    true = {c.answer for c in pool if c.prompt == example.prompt}

    def rank(candidate: _Candidate) -> tuple[int, float, float]:
        alike = len(words & candidate.words) / max(1, len(words | candidate.words))
        return candidate.moved, -alike, random.Random(f"{seed}/{example.id}/{candidate.answer}").random()

    wrong = (c for c in pool if c.answer not in true and not _contains(c.answer.casefold(), answer))
    return tuple(dict.fromkeys(c.answer for c in sorted(wrong, key=rank)))[:n]


def _contains(one: str, other: str) -> bool:
    return one in other or other in one


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))
