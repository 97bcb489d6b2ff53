"""Intervals: they cover what they should, agree with scipy where it can be asked, and keep paired values together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.audit.intervals import bootstrap, mean_interval


def test_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(150, 30))
    hits = 0
    for row in values:
        low, high = bootstrap(lambda i, row=row: float(row[i].mean()), [30], resamples=250, level=0.9)
        hits += low <= 1.0 <= high
    # 0.9 aimed at; skewed data and 30 items lose a few points, and 150 trials add a standard error of 2.5.
    assert 0.8 <= hits / 150 <= 0.97


def test_equals_scipy_bca() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(2).gamma(2.0, size=25)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=3).confidence_interval
    ours = bootstrap(lambda i: float(values[i].mean()), [25], resamples=999, seed=3)
    assert ours == pytest.approx(tuple(theirs), rel=1e-9)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=20).tolist()
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_pairs_stay_together() -> None:
    """The ratio of two columns in a fixed proportion has no spread, unless items lose their partner."""
    top = np.arange(1.0, 21.0)
    low, high = bootstrap(lambda i: float((2 * top[i]).sum() / top[i].sum()), [20])
    assert low == high == 2.0


def test_seeds_that_differ_widen_the_interval() -> None:
    items = np.random.default_rng(5).normal(size=40)
    alike = np.stack([items, items, items])
    spread = alike + np.array([[-2.0], [0.0], [2.0]])

    def width(table: np.ndarray) -> float:
        low, high = bootstrap(lambda s, i: float(table[np.ix_(s, i)].mean()), table.shape)
        return high - low

    assert width(spread) > 2 * width(alike)


def test_more_items_narrow_it() -> None:
    rng = np.random.default_rng(6)
    few, many = mean_interval(rng.normal(size=16).tolist()), mean_interval(rng.normal(size=400).tolist())
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_degenerate_scores() -> None:
    assert mean_interval([0.5] * 8) == (0.5, 0.5)
    assert mean_interval([0.7]) == (0.7, 0.7)
    assert all(math.isnan(bound) for bound in bootstrap(lambda i: math.nan, [4]))


@pytest.mark.parametrize("n", [1, 7, 129])
def test_the_interval_of_a_mean_is_the_bootstrap_of_a_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    assert mean_interval(list(values)) == bootstrap(lambda items: float(values[items].mean()), [n])
