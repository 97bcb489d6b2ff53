"""Which attacks a verdict may rest on: those that find answers by themselves need a control."""

from __future__ import annotations

import pytest

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.attacks.budget import Budget
from expunge.attacks.quantise import Quantise
from expunge.audit.control import IGNORANCE, Recovery
from expunge.basis import counts, uncounted
from expunge.models.scores import Scores


def result(name: str) -> AttackResult:
    point = CurvePoint(0.0, 0, 0, 0, 1.0, 5.0)
    scores = Scores(0.3, 0.0, 0.3, 0.3, 20)
    return AttackResult(name, {}, (point,), scores, point, point, (), (), (), {}, Budget(), Budget())


@pytest.mark.parametrize("name", ["quantise", "quantise@low"])
def test_an_attack_that_finds_answers_by_itself_counts_beside_a_control_only(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert counts(result(name), None)
    monkeypatch.setattr(Quantise, "control_only", True)
    assert not counts(result(name), None)
    assert counts(result(name), result(name))


def test_another_attack_or_one_that_is_not_known_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantise, "control_only", True)
    assert counts(result("relearn-harmful"), None)
    assert counts(result("of-another-day"), None)


def test_the_reasons_say_why_and_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantise, "control_only", True)
    share = Recovery(0.87, 0.8, 0.9, 0.9, 20, 1, IGNORANCE, 0.0, 0.3)
    tries = [(result("quantise"), None), (result("relearn-harmful"), None)]
    (why,) = uncounted(tries, [share, share])
    assert why.startswith("quantise does not count")
    assert "87%" in why
    assert uncounted([(each, each) for each, _ in tries], [share, share]) == []
