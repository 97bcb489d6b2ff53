"""Recovery: hand numbers, planted truths, and what happens where there was nothing to bring back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.attacks.budget import Budget
from expunge.audit.control import GOLD_MODEL, IGNORANCE, recovery, residual
from expunge.errors import InputError
from expunge.models.scores import ItemScore, Scores, summarise

IDS = tuple(f"i{n}" for n in range(20))
Odds = list[float] | np.ndarray


def item(name: str, odds: float) -> ItemScore:
    return ItemScore(name, -1.0, 1, (-1.0 - odds, -1.0 - odds), -1.0, odds, odds > 0, 0.5, 1 / 3)


def items(odds: Odds) -> tuple[ItemScore, ...]:
    return tuple(item(name, float(value)) for name, value in zip(IDS, odds, strict=False))


def point(odds: Odds, step: int = 0, rate: float = 1e-5, seed: int = 0) -> CurvePoint:
    scored = summarise(items(odds))
    return CurvePoint(rate, seed, step, 8 * step, scored.accuracy, scored.log_odds, tuple(map(float, odds)))


def result(*curve: CurvePoint) -> AttackResult:
    best = max(curve, key=lambda p: p.log_odds)
    return AttackResult(
        name="relearn-harmful",
        settings={},
        curve=curve,
        start=Scores(curve[0].accuracy, curve[0].log_odds, 1 / 3, 0.5, len(curve[0].item_log_odds)),
        best=best,
        best_accuracy=max(curve, key=lambda p: p.accuracy),
        items=items(best.item_log_odds),
        trained_ids=("t",),
        held_out_ids=IDS[: len(curve[0].item_log_odds)],
        samples={},
        allowed=Budget(),
        spent=Budget(),
    )


def test_by_hand_against_ignorance() -> None:
    attacked = result(point([-1, -1, 0]), point([1, 2, 3], 2), point([1, 1, 1], 4))
    found = recovery(attacked, items([4, 4, 4]))
    assert found.value == pytest.approx(2 / 4)
    assert found.curve == pytest.approx((-2 / 3 / 4, 2 / 4, 1 / 4))
    assert (found.control, found.control_log_odds, found.items, found.seeds) == (IGNORANCE, 0.0, 3, 1)
    assert found.accuracy == pytest.approx(1.0)


def test_by_hand_against_a_gold_model() -> None:
    """(3 - 1) / (5 - 0.5), where the lead is largest: at step 2, not at step 4 where both stand higher."""
    attacked = result(point([0, 0]), point([2, 4], 2), point([6, 6], 4))
    control = result(point([0, 1]), point([-1, 3], 2), point([9, 9], 4))
    found = recovery(attacked, items([5, 5]), control)
    assert found.value == pytest.approx(2 / 4.5)
    assert found.curve == pytest.approx((-0.5 / 4.5, 2 / 4.5, -3 / 4.5))
    assert (found.control, found.control_log_odds) == (GOLD_MODEL, 1.0)
    # All right at step 2, where the control has half; half was right at its start.
    assert found.accuracy == pytest.approx((1 - 0.5) / (1 - 0.5))


def test_a_model_that_never_knew_recovers_nothing_and_one_that_only_hid_it_recovers_all() -> None:
    rng = np.random.default_rng(0)
    knew = rng.normal(6, 1, 20)
    ignorant, hiding = rng.normal(0, 1, 20), rng.normal(-3, 1, 20)
    control = result(point(ignorant), point(ignorant + 0.2, 2))
    other = rng.normal(0, 1, 20)
    nothing = recovery(result(point(other), point(other + 0.2, 2)), items(knew), control)
    assert nothing.low < 0 < nothing.high < 0.25
    everything = recovery(result(point(hiding), point(knew, 2)), items(knew), control)
    assert 0.9 < everything.low < everything.value < everything.high < 1.1


def test_little_knowledge_is_knowledge() -> None:
    found = recovery(result(point([0.0] * 4), point([0.1] * 4, 2)), items([0.2] * 4))
    assert found.known and found.value == pytest.approx(1 / 2)


def test_values_of_an_item_stay_together() -> None:
    """An attack that restores exactly half of every item has R = 1/2 without spread, however the items differ."""
    knew = np.linspace(1, 9, 20)
    found = recovery(result(point(0 * knew), point(knew / 2, 2)), items(knew))
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_seeds_are_averaged_each_at_its_own_best_point() -> None:
    points = [point([0] * 4, 0, seed=s) for s in (0, 1)]
    points += [point([2] * 4, 2, seed=0), point([1] * 4, 4, seed=0), point([3] * 4, 2, 2e-5, seed=1)]
    found = recovery(result(*points, point([0] * 4, 0, 2e-5, 1)), items([4] * 4))
    assert found.value == pytest.approx((2 + 3) / 2 / 4)
    assert found.seeds == 2
    assert found.low < found.value < found.high


@pytest.mark.parametrize("gold", [False, True])
def test_more_attack_never_recovers_less_of_one_seed(gold: bool) -> None:
    """Also where the attack teaches the control faster than it brings back what the model had."""
    rng = np.random.default_rng(1)
    moments = range(0, 20, 2)
    curve = [point(rng.normal(step / 10, 1, 20), step) for step in moments]
    taught = [point(rng.normal(step / 5, 1, 20), step) for step in moments]
    found = [
        recovery(result(*curve[: n + 1]), items([4] * 20), result(*taught[: n + 1]) if gold else None)
        for n in range(len(curve))
    ]
    for values in ([each.value for each in found], [each.accuracy for each in found]):
        assert values == sorted(values)


@pytest.mark.parametrize("knew", [[0.0] * 4, [-2.0] * 4, [0.05] * 4])
def test_nothing_known_means_no_recovery_rather_than_a_wild_number(knew: list[float]) -> None:
    found = recovery(result(point([0] * 4), point([3] * 4, 2)), items(knew))
    assert found.value == 0 and not found.known and math.isnan(found.low)
    assert set(found.curve) == {0.0}


def test_control_whose_cell_ended_early_is_read_at_its_end() -> None:
    attacked = result(point([0, 0]), point([2, 2], 2), point([4, 4], 4))
    control = result(point([0, 0]), point([1, 1], 2))
    assert recovery(attacked, items([4, 4]), control).value == pytest.approx((4 - 1) / 4)


def test_mistakes() -> None:
    attacked = result(point([0, 0]), point([1, 1], 2))
    with pytest.raises(InputError, match="other items"):
        recovery(attacked, items([4, 4]), replace(attacked, held_out_ids=("a", "b")))
    with pytest.raises(InputError, match="missing"):
        recovery(attacked, items([4]))
    with pytest.raises(InputError, match="another grid"):
        recovery(attacked, items([4, 4]), result(point([0, 0], rate=1e-4)))


def test_residual() -> None:
    found = residual(items([1, 1, -1]), items([4, 4, 4]))
    assert found.value == pytest.approx(1 / 12)
    assert found.accuracy == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    gold = residual(items([1, 1, 4]), items([4, 4, 4]), items([1, -1, 0]))
    assert gold.value == pytest.approx(2 / 4)
    assert (gold.control, gold.control_log_odds) == (GOLD_MODEL, 0.0)
    assert gold.control_accuracy == pytest.approx(1 / 3)
    assert residual(items([4] * 5), items([4] * 5)).value == 1


@pytest.mark.parametrize("change", [{"settings": {"max_steps": 2}}, {"trained_ids": ("u",)}])
def test_a_control_that_was_attacked_otherwise_is_refused(change: dict[str, object]) -> None:
    """As where attacks were made again with other settings, and the control was not reached."""
    attacked, control = result(point([0, 0, 0])), result(point([0, 0, 0]))
    assert recovery(attacked, items([4, 4, 4]), control).value == 0
    with pytest.raises(InputError, match="control was"):
        recovery(attacked, items([4, 4, 4]), replace(control, **change))


def test_a_seed_that_diverged_before_it_was_scored_says_nothing() -> None:
    """It counts as if it had not run, and not as an attack that brought nothing back."""
    came = (point([0, 0, 0]), point([2, 3, 2], 4), point([1, 1, 1], 8))
    alone, beside = (
        recovery(result(*came, *more), items([4, 4, 4]))
        for more in ((), (point([0, 0, 0], seed=1), point([0, 0, 0], seed=2)))
    )
    assert (beside.value, beside.low, beside.high, beside.seeds) == (alone.value, alone.low, alone.high, 1)
    assert recovery(result(point([1, 1, 1])), items([4, 4, 4])).value == pytest.approx(0.25), (
        "none was scored: the start"
    )
