"""ROUGE-L recall against the package that the field uses, and against a brute-force definition."""

from __future__ import annotations

import itertools
import random

import pytest

from expunge.audit.rouge import longest_common_subsequence, rouge_l_recall


@pytest.mark.parametrize(
    ("reference", "candidate", "recall"),
    [
        ("Buenos Aires", "The capital is Buenos Aires.", 1.0),
        ("Buenos Aires", "Aires Buenos", 0.5),
        ("Buenos Aires", "Lima", 0.0),
        ("Buenos Aires", "", 0.0),
        ("", "Lima", 0.0),
        ("St. John's", "St Johns", 1 / 3),
    ],
)
def test_by_hand(reference: str, candidate: str, recall: float) -> None:
    assert rouge_l_recall(reference, candidate) == pytest.approx(recall)


def test_equals_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    rng = random.Random(0)
    alphabet = ["Oslo", "the", "a", "city,", "in-land", "3rd", "São", "É", "x_y", "THE", "...", "city"]
    for _ in range(200):
        reference, candidate = (" ".join(rng.choices(alphabet, k=rng.randint(0, 9))) for _ in range(2))
        assert rouge_l_recall(reference, candidate) == pytest.approx(
            scorer.score(reference, candidate)["rougeL"].recall
        )


def test_subsequence_equals_brute_force() -> None:
    rng = random.Random(1)
    for _ in range(50):
        first, second = (rng.choices("abc", k=rng.randint(0, 6)) for _ in range(2))
        subsets = lambda s: {c for n in range(len(s) + 1) for c in itertools.combinations(s, n)}  # noqa: E731
        assert longest_common_subsequence(first, second) == max(len(c) for c in subsets(first) & subsets(second))
