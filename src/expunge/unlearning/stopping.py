"""When a run ends: the facts are forgotten, the budget is spent, or the model falls apart."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from expunge.data.example import Example
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.metrics import StepMetrics

_log = logging.getLogger(__name__)


class StopReason(StrEnum):
    """Why a run ended."""

    FORGOTTEN = "forgotten"
    MAX_STEPS = "max_steps"
    MAX_SECONDS = "max_seconds"
    DIVERGED = "diverged"
    NOTHING_TO_FORGET = "nothing to forget"


@dataclass(frozen=True, slots=True)
class StopRule:
    """Ends a run, judging by its history alone; so a resumed run ends where a straight one does.

    Args:
        log_odds: forgotten when the forget log-odds are at most this, `within` included; None for no such condition.
        within: tolerance of `log_odds`.
        accuracy: and when the forget accuracy is at most this; None for no such condition.
        min_steps: before which nothing counts as forgotten.
        max_steps: the budget of steps.
        max_seconds: the budget of time, None for no limit.
        max_rise: diverged when the retain term of a step is this much (nats per token) above the first one.
    """

    log_odds: float | None
    within: float
    accuracy: float | None
    min_steps: int
    max_steps: int
    max_seconds: float | None
    max_rise: float

    @classmethod
    def of(cls, arguments: UnlearnArguments, graded: Sequence[Example], vocabulary: int | None) -> StopRule:
        """The rule for forget items `graded`, those that have options; without any, the budgets alone end the run.

        A model has diverged when it has lost log(vocabulary) nats on every retain token: what a model that was sure
        loses by turning into a uniform guess. `vocabulary` is None where the retain term is no NLL, which has no such
        bound.
        """
        if not graded:
            _log.warning("No forget item has options: only max_steps and max_seconds end the run.")
        return cls(
            log_odds=arguments.stop_log_odds if graded else None,
            within=arguments.stop_within or 0.0,
            accuracy=accuracy_wanted(arguments, graded) if graded else None,
            min_steps=arguments.least_steps,
            max_steps=arguments.max_steps,
            max_seconds=arguments.max_seconds,
            max_rise=math.inf if vocabulary is None else math.log(vocabulary),
        )

    def reason(self, history: Sequence[StepMetrics]) -> StopReason | None:
        """Why to stop after the last line of `history`, or None."""
        last = history[-1]
        if last.step >= self.min_steps and self._forgotten(last):
            return StopReason.FORGOTTEN
        if last.step >= self.max_steps:
            return StopReason.MAX_STEPS
        if self.max_seconds is not None and last.seconds >= self.max_seconds:
            return StopReason.MAX_SECONDS
        if _rise(history) > self.max_rise:
            return StopReason.DIVERGED
        return None

    def _forgotten(self, last: StepMetrics) -> bool:
        # Sums of thirds and the like are not exact, and an accuracy that equals chance must count.
        limits = (
            (last.forget_log_odds, self.log_odds, self.within),
            (last.forget_accuracy, self.accuracy, 1e-9),
        )
        wanted = [(value, limit + slack) for value, limit, slack in limits if limit is not None]
        return bool(wanted) and all(value is not None and value <= limit for value, limit in wanted)


def accuracy_wanted(arguments: UnlearnArguments, graded: Sequence[Example]) -> float | None:
    """The forget accuracy to come down to, from what the arguments say and the items that have options."""
    wanted = arguments.stop_accuracy
    return fmean(example.chance for example in graded) if isinstance(wanted, str) else wanted


def _rise(history: Sequence[StepMetrics]) -> float:
    """How far the last retain term is above the first that was measured."""
    first, last = next((step.retain for step in history if step.retain is not None), None), history[-1].retain
    return 0.0 if first is None or last is None else last - first
