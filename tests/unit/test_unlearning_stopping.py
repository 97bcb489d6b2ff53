"""When a run ends."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest

from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.stopping import StopReason, StopRule
from unlearning_runs import EXAMPLES

START = StepMetrics(0, 0.0, forget_accuracy=1.0, forget_log_odds=5.0)
FIRST = StepMetrics(1, 1.0, retain=2.0)


def rule(**arguments: float | str | None) -> StopRule:
    return StopRule.of(UnlearnArguments(max_steps=10, **arguments), EXAMPLES, 100)  # type: ignore[arg-type]


def at(log_odds: float | None = None, accuracy: float | None = None) -> list[StepMetrics]:
    return [START, FIRST, StepMetrics(2, 2.0, forget_accuracy=accuracy, forget_log_odds=log_odds)]


def test_ignorance_is_the_default_and_its_tolerance_is_enough() -> None:
    for log_odds, expected in ((0.26, None), (0.25, StopReason.FORGOTTEN), (-9.0, StopReason.FORGOTTEN), (None, None)):
        assert rule().reason(at(log_odds, 1.0)) is expected


def test_accuracy_must_be_reached_too_where_it_is_given() -> None:
    """Three of nine right is chance of three options, though 1/3 is no exact number."""
    both, alone = rule(stop_accuracy=1 / 3), rule(stop_accuracy=1 / 3, stop_log_odds=None)
    for accuracy, expected in ((0.34, None), (3 / 9, StopReason.FORGOTTEN), (0.0, StopReason.FORGOTTEN)):
        assert both.reason(at(0.0, accuracy)) is expected
        assert both.reason(at(1.0, accuracy)) is None
        assert alone.reason(at(1.0, accuracy)) is expected


def test_chance_is_the_accuracy_of_a_uniform_guess_at_the_items_own_options() -> None:
    """Two questions of two options each and one of five: (1/3 + 1/3 + 1/6) / 3."""
    few, many = replace(EXAMPLES[0], options=("a", "b")), replace(EXAMPLES[1], options=tuple("abcde"))
    arguments = UnlearnArguments(max_steps=10, stop_accuracy="chance", stop_log_odds=None)
    asked = StopRule.of(arguments, [few, few, many], 100)
    for accuracy, expected in ((0.28, None), (5 / 18, StopReason.FORGOTTEN), (0.0, StopReason.FORGOTTEN)):
        assert asked.reason(at(1.0, accuracy)) is expected


def test_without_an_evaluation_or_a_condition_nothing_counts_as_forgotten() -> None:
    assert rule().reason([START, FIRST]) is None
    assert rule(stop_log_odds=None).reason(at(-9.0, 0.0)) is None


def test_budgets() -> None:
    assert rule().reason([START, FIRST, StepMetrics(10, 2.0)]) is StopReason.MAX_STEPS
    assert rule(max_seconds=1.5).reason([START, FIRST]) is None
    assert rule(max_seconds=1.5).reason([START, FIRST, StepMetrics(2, 1.5)]) is StopReason.MAX_SECONDS


def test_divergence_is_the_loss_of_everything_that_could_be_known() -> None:
    for rise, expected in ((0.99, None), (1.01, StopReason.DIVERGED)):
        last = StepMetrics(2, 2.0, retain=2.0 + rise * math.log(100))
        assert rule().reason([START, FIRST, last]) is expected
        free = StopRule.of(UnlearnArguments(max_steps=10), EXAMPLES, None)
        assert free.reason([START, FIRST, last]) is None


def test_items_without_options_leave_the_budget_to_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bare = StopRule.of(UnlearnArguments(max_steps=10), [], 100)
    assert "No forget item has options" in caplog.text
    assert bare.reason([START, StepMetrics(1, 1.0, forget_accuracy=0.0)]) is None
