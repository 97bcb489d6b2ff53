"""Which attacks a verdict may rest on: those that find answers by themselves need a control."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.attacks.budget import Budget
from expunge.attacks.catalogue import why_uncounted
from expunge.attacks.quantise import Quantise
from expunge.basis import uncounted
from expunge.models.scores import Scores


def result(name: str) -> AttackResult:
    point = CurvePoint(0.0, 0, 0, 0, 1.0, 5.0)
    scores = Scores(0.3, 0.0, 0.3, 0.3, 20)
    return AttackResult(name, {}, (point,), scores, point, point, (), (), (), {}, Budget(), Budget())


@pytest.mark.parametrize("name", ["quantise", "quantise@low"])
def test_an_attack_that_finds_answers_by_itself_counts_beside_a_control_only(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert not why_uncounted(name, controlled=False)
    monkeypatch.setattr(Quantise, "control_only", True)
    assert "searches for the answers" in why_uncounted(name, controlled=False)
    assert not why_uncounted(name, controlled=True)


def test_an_attack_on_a_scale_of_its_own_never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantise, "own_scale", True)
    assert "no share" in why_uncounted("quantise", controlled=True)


def test_another_attack_or_one_that_is_not_known_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantise, "control_only", True)
    assert not why_uncounted("relearn-harmful", controlled=False)
    assert not why_uncounted("of-another-day", controlled=False)


def test_the_reasons_say_why_and_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantise, "control_only", True)
    (why,) = uncounted([(result("quantise"), None), (result("relearn-harmful"), None)])
    assert why.startswith("quantise does not count")
    assert why.endswith("It reached accuracy 1.00.")
    assert uncounted([(result("quantise"), result("quantise"))]) == []


def test_an_attack_that_diverged_everywhere_has_not_run() -> None:
    """Its best point is the model before the attack."""
    ran = replace(result("relearn-harmful"), spent=Budget(steps=2))
    stood = replace(ran, curve=tuple(replace(point, step=0) for point in ran.curve))
    moved = replace(ran, curve=(*stood.curve, replace(stood.curve[0], step=4)))
    assert not uncounted([(moved, None)]) and not uncounted([(result("quantise"), None)])
    (why,) = uncounted([(stood, stood)])
    assert "diverged" in why
