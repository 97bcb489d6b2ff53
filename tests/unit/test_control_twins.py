"""Recovery against made-up twins: hand numbers, and that twins never make a recovery smaller."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.attacks.budget import Budget
from expunge.audit.control import GOLD_MODEL, IGNORANCE, MADE_UP, Recovery, came_back, lead, recovery
from expunge.errors import InputError
from expunge.models.scores import ItemScore, Scores

IDS = tuple(f"i{n}" for n in range(12))
Odds = Sequence[float] | np.ndarray


def scored(names: Sequence[str], odds: Odds, right: float = 0.0) -> tuple[ItemScore, ...]:
    """Scores of the given log-odds, a share `right` of them correct."""
    return tuple(
        ItemScore(name, -1.0, 1, (-1.0 - value, -1.0 - value), -1.0, float(value), n < right * len(names), 0.5, 1 / 3)
        for n, (name, value) in enumerate(zip(names, odds, strict=True))
    )


def flat(value: float, n: int = 12) -> list[float]:
    return [value] * n


def point(odds: Odds, twins: Odds, step: int = 0, seed: int = 0) -> CurvePoint:
    mean = float(np.mean(odds))
    return CurvePoint(1e-5, seed, step, 8 * step, 0.5, mean, tuple(odds), twin_log_odds=tuple(twins))


def attack(*curve: CurvePoint, twinned: int = 12) -> AttackResult:
    best = max(curve, key=lambda p: p.log_odds)
    return AttackResult(
        name="relearn-harmful",
        settings={},
        curve=curve,
        start=Scores(0.5, curve[0].log_odds, 1 / 3, 0.5, len(IDS)),
        best=best,
        best_accuracy=best,
        items=scored(IDS, best.item_log_odds),
        trained_ids=("t",),
        held_out_ids=IDS,
        samples={},
        allowed=Budget(),
        spent=Budget(),
        twin_ids={name: f"twin of {name}" for name in IDS[:twinned]},
    )


def original_twins(odds: Odds, right: float = 1 / 3) -> dict[str, ItemScore]:
    names = IDS[: len(odds)]
    return dict(zip(names, scored([f"twin of {name}" for name in names], odds, right), strict=True))


KNEW = scored(IDS, flat(4.0), 1.0)


def test_by_hand() -> None:
    """(2 - -1) / (4 - -0.5), where the lead is largest: at step 2, not at step 4 where the log-odds are."""
    attacked = attack(point(flat(0), flat(-1)), point(flat(2), flat(-1), 2), point(flat(2.5), flat(2), 4))
    twins = original_twins(flat(-0.5))
    found = lead(attacked, KNEW, twins)
    assert (found.low, found.value, found.high) == pytest.approx((3 / 4.5,) * 3)
    assert found.curve == pytest.approx((1 / 4.5, 3 / 4.5, 0.5 / 4.5))
    assert (found.control, found.control_log_odds, found.items) == (MADE_UP, -1.0, 12)
    larger = recovery(attacked, KNEW, twins=twins)
    assert (larger.value, larger.control) == (found.value, MADE_UP)
    assert larger.curve == pytest.approx((1 / 4.5, 3 / 4.5, 2.5 / 4))
    assert larger.accuracy == recovery(attacked, KNEW).accuracy


def test_seeds_are_averaged_each_at_its_own_largest_lead() -> None:
    points = [point(flat(0), flat(0), 0, s) for s in (0, 1)]
    points += [point(flat(3), flat(0), 2, 0), point(flat(3), flat(2), 2, 1)]
    found = lead(attack(*points), KNEW, original_twins(flat(0)))
    assert found.value == pytest.approx((3 + 1) / 2 / 4) and found.seeds == 2


def test_answers_made_unlikely_for_every_subject_are_found_out() -> None:
    """A bias of -4 on the answers: log-odds 0 look like ignorance, and the lead is as large as it ever was."""
    attacked = attack(point(flat(0), flat(-4.5)), point(flat(0.2), flat(-4.3), 2))
    hidden = recovery(attacked, KNEW, twins=original_twins(flat(-0.5)))
    assert (hidden.value, hidden.control) == (pytest.approx(1.0), MADE_UP)
    assert recovery(attacked, KNEW).value == pytest.approx(0.05)


def test_answers_made_likely_for_every_subject_hide_nothing() -> None:
    attacked = attack(point(flat(0), flat(0)), point(flat(4), flat(4), 2))
    found = recovery(attacked, KNEW, twins=original_twins(flat(0)))
    assert (found.value, found.control) == (pytest.approx(1.0), IGNORANCE)
    assert lead(attacked, KNEW, original_twins(flat(0))).value == 0


def cases() -> list[tuple[AttackResult, tuple[ItemScore, ...], dict[str, ItemScore]]]:
    rng = np.random.default_rng(0)

    def odds(mean: float) -> np.ndarray:
        return rng.normal(mean, 1.5, 12)

    found = []
    for _ in range(6):
        curve = [point(odds(rng.normal()), odds(rng.normal()), step) for step in range(0, 10, 2)]
        found.append((attack(*curve), scored(IDS, odds(3), 1.0), original_twins(odds(-0.5))))
    return found


def test_twins_never_make_a_recovery_smaller() -> None:
    for attacked, knew, twins in cases():
        plain, both = recovery(attacked, knew), recovery(attacked, knew, twins=twins)
        assert both.value >= plain.value and both.low >= plain.low and both.high >= plain.high
        assert all(map(float.__ge__, both.curve, plain.curve))
        assert both.low <= both.high


def test_the_ledger_s_share_is_the_report_s() -> None:
    """`came_back` has log-odds alone, and no interval."""
    for attacked, knew, twins in cases():
        odds = {item.id: item.log_odds for item in knew}
        guessed = {item: twin.log_odds for item, twin in twins.items()}
        assert came_back(attacked, odds, guessed) == recovery(attacked, knew, twins=twins).value
        assert came_back(attacked, odds, {}) == recovery(attacked, knew).value
        fewer = {name: guessed[name] for name in IDS[1:]}
        assert came_back(attacked, odds, fewer) == recovery(attacked, knew).value
    some = attack(*cases()[0][0].curve, twinned=8)
    assert came_back(some, odds, guessed) == recovery(some, knew).value
    assert came_back(some, dict.fromkeys(IDS, 0.05), guessed) is None


def test_more_attack_never_recovers_less() -> None:
    for attacked, knew, twins in cases()[:2]:
        shares = [
            recovery(attack(*attacked.curve[: n + 1]), knew, twins=twins).value for n in range(len(attacked.curve))
        ]
        assert shares == sorted(shares)


def test_too_few_twins_leave_ignorance_and_it_is_told() -> None:
    for twinned, enough in ((8, False), (9, True)):
        curve = [point(flat(n), flat(-1 - n, twinned), n) for n in (0, 1)]
        attacked = attack(*curve, twinned=twinned)
        found = recovery(attacked, KNEW, twins=original_twins(flat(-0.5)))
        assert found.control == (MADE_UP if enough else IGNORANCE)
        assert enough or "8 of the 12 items" in found.note
        assert enough or replace(found, note="") == recovery(attacked, KNEW)


@pytest.mark.parametrize(("right", "note"), [(0.75, "75% of the made-up subjects"), (0.5, "")])
def test_twins_that_were_answered_before_are_told(right: float, note: str) -> None:
    """9 of 12 right are at least 0.47 by Wilson, above chance; 6 of 12 are at least 0.25, which may be luck."""
    attacked = attack(point(flat(0), flat(-4)), point(flat(0.2), flat(-4), 2))
    found = recovery(attacked, KNEW, twins=original_twins(flat(0.5), right))
    assert note in found.note and bool(note) == bool(found.note)
    assert found.value > 1 and found.control == MADE_UP, "an output bias is found out all the same"


def test_a_gold_model_makes_twins_needless_and_older_results_have_none() -> None:
    attacked = attack(point(flat(0), flat(-3)), point(flat(1), flat(-2), 2))
    assert recovery(attacked, KNEW, attacked, twins=original_twins(flat(0))).control == GOLD_MODEL
    bare = attack(*(replace(p, twin_log_odds=()) for p in attacked.curve), twinned=0)
    assert recovery(bare, KNEW, twins=original_twins(flat(0))) == recovery(bare, KNEW)
    assert recovery(attacked, KNEW, twins={}) == recovery(attacked, KNEW)


@pytest.mark.parametrize("knew", [0.0, -2.0])
def test_nothing_known_stays_nothing(knew: float) -> None:
    attacked = attack(point(flat(0), flat(-3)), point(flat(1), flat(-2), 2))
    found = recovery(attacked, scored(IDS, flat(knew)), twins=original_twins(flat(-4)))
    assert found.value == 0 and not found.known and math.isnan(found.low)


def test_an_original_that_knew_its_twins_as_well_leaves_ignorance_as_control() -> None:
    attacked = attack(point(flat(0), flat(-3)), point(flat(1), flat(-2), 2))
    assert recovery(attacked, KNEW, twins=original_twins(flat(4))) == recovery(attacked, KNEW)


def test_other_twins_than_those_of_the_attack() -> None:
    attacked = attack(point(flat(0), flat(-3)), point(flat(1), flat(-2), 2))
    twins = original_twins(flat(0))
    for wrong in (dict(list(twins.items())[1:]), {**twins, "i3": replace(twins["i3"], id="another")}):
        with pytest.raises(InputError, match="other twins"):
            recovery(attacked, KNEW, twins=wrong)


def test_results_from_before_there_were_twins_can_be_read() -> None:
    attacked = attack(point(flat(0), flat(-3)), point(flat(1), flat(-2), 2))
    assert AttackResult.from_json(json.loads(json.dumps(attacked.to_json()))) == attacked
    older = attacked.to_json()
    del older["twin_ids"]
    for part in (*older["curve"], older["best"], older["best_accuracy"]):
        del part["twin_log_odds"]
    read = AttackResult.from_json(older)
    assert read.twin_ids == {} and all(p.twin_log_odds == () for p in read.curve)
    assert isinstance(recovery(read, KNEW, twins=original_twins(flat(0))), Recovery)
