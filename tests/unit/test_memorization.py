"""What is left, and what it cost: measures with items, intervals and chance."""

from __future__ import annotations

import math

import pytest

from expunge.audit.memorization import memorization, recalls
from expunge.audit.utility import Kept, Language
from expunge.data.example import Example
from expunge.data.sources import passages
from expunge.errors import InputError
from expunge.models.answers import TextStatistics
from expunge.models.scores import ItemScore, Scores


def item(name: str, odds: float, options: int = 2) -> ItemScore:
    return ItemScore(name, -1.0, 1, (-1.0,) * options, -1.0, odds, odds > 0, math.exp(-1), 1 / (options + 1))


def test_measures_keep_items_and_know_their_chance() -> None:
    found = memorization([item("a", 1.0), item("b", -3.0), item("c", 2.0, options=3)], rouge_l=[1.0, 0.0, 0.5])
    assert found.ids == ("a", "b", "c")
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.accuracy.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 4) / 3)
    assert found.accuracy.values == (1.0, 0.0, 1.0)
    assert found.log_odds is not None and found.log_odds.value == 0 == found.log_odds.chance
    assert found.log_odds.low < 0 < found.log_odds.high
    assert found.rouge_l is not None and found.rouge_l.value == 0.5
    assert found.probability.low == found.probability.high == pytest.approx(math.exp(-1))


def test_what_was_not_measured_is_none() -> None:
    found = memorization([item("a", math.nan, options=0), item("b", 1.0)])
    assert found.log_odds is None and found.rouge_l is None
    for bad in ([], [item("a", 1.0)]):
        with pytest.raises(InputError):
            memorization(bad, rouge_l=[0.5, 0.5])


def test_recalls() -> None:
    assert recalls([Example("q", "Abu Dhabi"), Example("r", "Oslo")], ["abu", "Oslo."]) == (0.5, 1.0)


def scores(accuracy: float) -> Scores:
    return Scores(accuracy, 0.0, 0.25, 0.5, 20)


@pytest.mark.parametrize(("before", "after", "lost"), [(1, 1, 0), (1, 0.25, 1), (1, 0.625, 0.5), (0.75, 0.85, -0.2)])
def test_margin_lost(before: float, after: float, lost: float) -> None:
    assert Kept("retain", scores(before), scores(after)).margin_lost == pytest.approx(lost)


def test_margin_of_what_was_never_known_is_no_number() -> None:
    assert math.isnan(Kept("retain", scores(0.3), scores(0.0)).margin_lost)


def test_language() -> None:
    found = Language.of(TextStatistics(2.0, 8.0, None, 10), TextStatistics(3.0, 20.0, 0.3, 10))
    assert (found.factor, found.kl) == (2.5, 0.3)
    assert Language(8.0, math.inf).factor == Language(8.0, math.nan).factor == math.inf


def test_bundled_passages() -> None:
    texts = passages()
    assert len(texts) == len(set(texts)) == 24
    assert all(80 <= len(text.split()) <= 120 for text in texts)
