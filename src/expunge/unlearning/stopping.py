"""When a run ends: the facts are forgotten, the budget is spent, or the model falls apart."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from expunge.data.example import Example
from expunge.errors import InputError
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
        accuracy: forgotten when the forget accuracy is at most this; None if there is no accuracy to judge by.
        log_odds: and, unless None, when the forget log-odds are at most this.
        max_steps: the budget of steps.
        max_seconds: the budget of time, None for no limit.
        max_rise: diverged when the retain term of a step is this much (nats per token) above that of the first step.
    """

    accuracy: float | None
    log_odds: float | None
    max_steps: int
    max_seconds: float | None
    max_rise: float

    @classmethod
    def of(cls, arguments: UnlearnArguments, graded: Sequence[Example], vocabulary: int) -> StopRule:
        """The rule for forget items `graded`, those that have options.

        A model has diverged when it has lost log(vocabulary) nats on every retain token: what a model that was sure
        loses by turning into a uniform guess.

        Raises:
            InputError: a score to stop at is given, and no forget item has options to compute it from.
        """
        accuracy, log_odds = arguments.stop_accuracy, arguments.stop_log_odds
        if not graded:
            if accuracy is not None or log_odds is not None:
                raise InputError(
                    "No forget item has options, so there is no accuracy to stop at.",
                    "stop_accuracy, stop_log_odds",
                    "Give the items options (wrong answers), or leave stopping to max_steps.",
                )
            _log.warning("No forget item has options: only max_steps and max_seconds end the run.")
        elif accuracy is None:
            accuracy = fmean(example.chance for example in graded)
        return cls(accuracy, log_odds, arguments.max_steps, arguments.max_seconds, math.log(vocabulary))

    def reason(self, history: Sequence[StepMetrics]) -> StopReason | None:
        """Why to stop after the last line of `history`, or None."""
        last = history[-1]
        if self._forgotten(last):
            return StopReason.FORGOTTEN
        if last.step >= self.max_steps:
            return StopReason.MAX_STEPS
        if self.max_seconds is not None and last.seconds >= self.max_seconds:
            return StopReason.MAX_SECONDS
        if len(history) > 1 and _rise(history[1], last) > self.max_rise:
            return StopReason.DIVERGED
        return None

    def _forgotten(self, last: StepMetrics) -> bool:
        # Sums of thirds and the like are not exact, and an accuracy that equals chance must count.
        if self.accuracy is None or last.forget_accuracy is None or last.forget_accuracy > self.accuracy + 1e-9:
            return False
        return self.log_odds is None or (last.forget_log_odds is not None and last.forget_log_odds <= self.log_odds)


def _rise(first: StepMetrics, last: StepMetrics) -> float:
    return last.retain - first.retain if last.retain is not None and first.retain is not None else 0.0
