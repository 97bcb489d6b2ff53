"""When a run ends."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest

from expunge.errors import InputError
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.stopping import StopReason, StopRule
from unlearning_runs import EXAMPLES

START = StepMetrics(0, 0.0, forget_accuracy=1.0, forget_log_odds=5.0)
FIRST = StepMetrics(1, 1.0, retain=2.0)


def rule(**arguments: float) -> StopRule:
    return StopRule.of(UnlearnArguments(max_steps=10, **arguments), EXAMPLES, 100)  # type: ignore[arg-type]


def test_chance_is_the_default_and_reaching_it_is_enough() -> None:
    """Three of nine right is chance of three options, though 1/3 is no exact number."""
    thirds = rule()
    assert thirds.accuracy == pytest.approx(1 / 3)
    for accuracy, expected in ((0.34, None), (3 / 9, StopReason.FORGOTTEN), (0.0, StopReason.FORGOTTEN)):
        assert thirds.reason([START, FIRST, StepMetrics(2, 2.0, forget_accuracy=accuracy)]) is expected


def test_chance_is_the_mean_over_the_items() -> None:
    mixed = [EXAMPLES[0], replace(EXAMPLES[1], options=("a",)), replace(EXAMPLES[2], options=tuple("abc"))]
    assert StopRule.of(UnlearnArguments(), mixed, 100).accuracy == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)


def test_without_an_evaluation_nothing_counts_as_forgotten() -> None:
    assert rule().reason([START, FIRST]) is None


def test_log_odds_must_be_reached_too() -> None:
    both = rule(stop_log_odds=0.0)
    for log_odds, expected in ((0.1, None), (None, None), (0.0, StopReason.FORGOTTEN)):
        last = StepMetrics(2, 2.0, forget_accuracy=0.0, forget_log_odds=log_odds)
        assert both.reason([START, FIRST, last]) is expected


def test_budgets() -> None:
    assert rule().reason([START, FIRST, StepMetrics(10, 2.0)]) is StopReason.MAX_STEPS
    assert rule(max_seconds=1.5).reason([START, FIRST]) is None
    assert rule(max_seconds=1.5).reason([START, FIRST, StepMetrics(2, 1.5)]) is StopReason.MAX_SECONDS


def test_divergence_is_the_loss_of_everything_that_could_be_known() -> None:
    for rise, expected in ((0.99, None), (1.01, StopReason.DIVERGED)):
        last = StepMetrics(2, 2.0, retain=2.0 + rise * math.log(100))
        assert rule().reason([START, FIRST, last]) is expected


def test_items_without_options_leave_the_budget_to_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bare = StopRule.of(UnlearnArguments(max_steps=10), [], 100)
    assert "No forget item has options" in caplog.text
    assert bare.reason([START, StepMetrics(1, 1.0, forget_accuracy=1.0)]) is None
    for wanted in ({"stop_accuracy": 0.5}, {"stop_log_odds": 0.0}):
        with pytest.raises(InputError, match="No forget item has options"):
            StopRule.of(UnlearnArguments(**wanted), [], 100)  # type: ignore[arg-type]
