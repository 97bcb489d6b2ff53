"""How well a score tells two kinds of model apart, and how it goes with another one.

    AUC = P(score of a model of one kind > score of a model of the other) + P(equal) / 2

1: every model of the first kind scores higher; 1/2: the score says nothing; 0: it says the opposite. Models that come
from one training belong together, so intervals resample the trainings, each with all of its models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.audit.intervals import Indices, Statistic, bootstrap

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % bootstrap interval; NaN where there is nothing to estimate."""

    value: float
    low: float
    high: float


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Chance that one of `higher` exceeds one of `lower`, ties counting one half; NaN where one of them is empty."""
    if not len(higher) or not len(lower):
        return math.nan
    difference = np.subtract.outer(np.asarray(higher, float), np.asarray(lower, float))
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: Pearson correlation of the mid-ranks; NaN where one of them is constant."""
    one, other = (_midranks(np.asarray(values, float)) for values in (x, y))
    if len(one) < 2 or not np.ptp(one) or not np.ptp(other):
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def separation(higher: Sequence[Sequence[float]], lower: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """AUC over all models; `higher` and `lower` hold the scores of each training's models, in the same order."""

    def statistic(trainings: Indices) -> float:
        return auc(_pooled(higher, trainings), _pooled(lower, trainings))

    return _estimate(statistic, len(higher), seed)


def agreement(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """Rank correlation over all models; `x` and `y` hold the scores of each training's models, in the same order."""

    def statistic(trainings: Indices) -> float:
        return rank_correlation(_pooled(x, trainings), _pooled(y, trainings))

    return _estimate(statistic, len(x), seed)


def _estimate(statistic: Statistic, trainings: int, seed: int) -> Estimate:
    low, high = bootstrap(statistic, [trainings], seed=seed)
    return Estimate(statistic(np.arange(trainings)), low, high)


def _pooled(scores: Sequence[Sequence[float]], trainings: Indices) -> list[float]:
    return [score for training in trainings for score in scores[training]]


def _midranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Values = (ends - (counts - 1) / 2)[inverse]
    return ranks
