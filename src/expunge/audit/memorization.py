"""What a model still holds of a set of items: four measures, each with its items, its interval and its chance level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from expunge.audit.intervals import mean_interval
from expunge.audit.rouge import rouge_l_recall
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import ItemScore

__all__ = ["Measure", "Memorization", "memorization", "rouge_l_recall"]


@dataclass(frozen=True)
class Measure:
    """The mean of one value per item.

    Args:
        value: the mean.
        low: lower bound of its 95 % bootstrap interval over items.
        high: upper bound.
        chance: the mean for a model that knows nothing, or None where that is not a fixed number.
        values: one per item, NaN where an item has none.
    """

    value: float
    low: float
    high: float
    chance: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], chance: float | None, seed: int = 0) -> Measure:
        """The mean of `values` and its interval; items without a value are NaN and left out, one at least has one."""
        there = [value for value in values if not math.isnan(value)]
        return cls(fmean(there), *mean_interval(there, seed=seed), chance, tuple(values))


@dataclass(frozen=True)
class Memorization:
    """Measures of one model on one set of items, in the order of `ids`.

    Args:
        ids: of the items.
        accuracy: share of items whose answer beats every option.
        log_odds: of the answer against its options, nats per token; None unless every item has options.
        probability: P(answer | prompt).
        rouge_l: recall of the answer in the greedy continuation; None unless that was given.
    """

    ids: tuple[str, ...]
    accuracy: Measure
    log_odds: Measure | None
    probability: Measure
    rouge_l: Measure | None


def memorization(items: Sequence[ItemScore], rouge_l: Sequence[float] = (), seed: int = 0) -> Memorization:
    """The measures of scored `items`; `rouge_l` holds one value per item, or none.

    Raises:
        InputError: there are no items, or not as many values as items.
    """
    if not items or len(rouge_l) not in (0, len(items)):
        raise InputError("Memorization needs items, and one ROUGE value for each.", f"{len(items)}, {len(rouge_l)}")
    odds = [item.log_odds for item in items] if all(item.option_log_probs for item in items) else []
    return Memorization(
        ids=tuple(item.id for item in items),
        accuracy=Measure.of([float(item.correct) for item in items], fmean(item.chance for item in items), seed),
        log_odds=Measure.of(odds, 0.0, seed) if odds else None,
        probability=Measure.of([item.probability for item in items], None, seed),
        rouge_l=Measure.of(rouge_l, None, seed) if rouge_l else None,
    )


def recalls(examples: Sequence[Example], said: Sequence[str]) -> tuple[float, ...]:
    """ROUGE-L recall of each example's answer in what the model said."""
    return tuple(rouge_l_recall(example.answer, text) for example, text in zip(examples, said, strict=True))
