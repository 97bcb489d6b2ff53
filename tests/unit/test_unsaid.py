"""What had to stay may be preferred among options and no longer be said: the reasons of a verdict tell of it."""

from __future__ import annotations

import pytest

from expunge.assemble import unsaid
from expunge.report.parts import Metric, Metrics, MetricState


def told(before: float | None, after: float | None, name: str = "retain_Q_A_ROUGE") -> Metrics:
    states = [None if value is None else MetricState(value=value) for value in (before, after)]
    return Metrics(rows=(Metric(name=name, before=states[0], after=states[1]),))


def test_lost_words_are_told() -> None:
    (reason,) = unsaid(told(1.0, 0.6))
    assert "60%" in reason and "100%" in reason


@pytest.mark.parametrize(
    "found",
    [
        None,
        Metrics(),
        told(1.0, 0.85),
        told(0.5, 0.45),
        told(None, 0.1),
        told(0.9, None),
        told(1.0, 0.1, "forget_Q_A_ROUGE"),
    ],
)
def test_nothing_is_told_where_little_was_lost_or_nothing_is_known(found: Metrics | None) -> None:
    assert unsaid(found) == []
