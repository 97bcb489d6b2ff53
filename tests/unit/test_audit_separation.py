"""AUC and rank correlation against scipy, and intervals that know which models belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from expunge.audit.intervals import bootstrap
from expunge.audit.separation import agreement, auc, rank_correlation, separation


def test_auc_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.integers(6, size=30) + 1.0, rng.integers(6, size=20) * 1.0
    assert auc(high, low) == pytest.approx(mannwhitneyu(high, low).statistic / 600)
    assert auc([2, 3], [1]) == 1 and auc([1], [1]) == 0.5 and auc([0], [1]) == 0
    assert math.isnan(auc([], [1.0]))


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(5, size=40), rng.integers(5, size=40)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation([1, 2, 3], [1, 10, 11]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def test_copies_within_a_training_narrow_no_interval() -> None:
    """Ten copies of each model are no more evidence than one of each."""
    rng = np.random.default_rng(2)
    high, low = rng.normal(0.7, 1, size=12), rng.normal(size=12)
    one = separation([[h] for h in high], [[v] for v in low])
    ten = separation([[h] * 10 for h in high], [[v] * 10 for v in low])
    assert (one.value, one.low, one.high) == pytest.approx((ten.value, ten.low, ten.high))
    assert one.low < one.value < one.high
    assert (one.low, one.high) == bootstrap(lambda i: auc(high[i], low[i]), [12], level=0.95)


def test_perfect_and_absent_separation() -> None:
    perfect = separation([[2.0, 3.0]] * 4, [[1.0]] * 4)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
    assert math.isnan(separation([[]] * 3, [[1.0]] * 3).value)


def test_agreement_pools_the_models_of_all_trainings() -> None:
    x, y = [[1.0, 2.0], [3.0]], [[5.0, 6.0], [9.0]]
    assert agreement(x, y).value == pytest.approx(1)
    assert agreement(x, [[6.0, 5.0], [0.0]]).value == pytest.approx(-1)
