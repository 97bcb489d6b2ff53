"""What came back over an attack: R and its price, out of a record, against hand-computed and planted truths."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.attacks.base import AttackResult
from expunge.attacks.base import CurvePoint as AttackPoint
from expunge.attacks.budget import Budget
from expunge.audit.control import recovery
from expunge.models.scores import ItemScore, summarise
from expunge.report import attack_figures, comeback
from expunge.report.canvas import drawing
from expunge.report.figures import labelled
from expunge.report.record import Attack, AttackControl, CurvePoint, Item, ItemState, Record
from synthetic_record import make_record, with_gold

SEEDS, RATES, STEPS = (0, 1), (1e-5, 5e-5), (0, 4, 8)


def point(rate: float, seed: int, step: int, log_odds: float, variant: str = "") -> CurvePoint:
    return CurvePoint(learning_rate=rate, seed=seed, step=step, examples_seen=8 * step, accuracy=0.5,
                      log_odds=log_odds, variant=variant)  # fmt: skip


def planted(curve: tuple[CurvePoint, ...], control: tuple[CurvePoint, ...] = (), knew: float = 4.0) -> Record:
    """A record with one attack, scored on two facts that the original knew by `knew` nats."""
    record = with_gold(make_record()) if control else make_record()
    items = tuple(
        Item(id=name, prompt=name, answer=name, split="forget", before=ItemState(log_odds=knew + shift),
             after=ItemState(log_odds=0.0), attacked=ItemState(log_odds=shift))
        for name, shift in (("a", -1.0), ("b", 1.0))
    )  # fmt: skip
    attack = record.attacks[0].model_copy(
        update={
            "curve": curve,
            "best": max(curve, key=lambda p: p.log_odds),
            "samples": {"a": "", "b": ""},
            "control": AttackControl(accuracy=0.3, log_odds=0.0, curve=control),
        }
    )
    return record.model_copy(update={"attacks": (attack,), "items": items})


def test_the_course_is_the_best_so_far_over_the_grid_and_the_mean_over_seeds() -> None:
    curve = (point(1e-5, 0, 0, 0.0), point(1e-5, 0, 4, 2.0), point(1e-5, 0, 8, 1.0),
             point(5e-5, 0, 0, 0.0), point(5e-5, 0, 4, 1.0), point(5e-5, 0, 8, 3.0),
             point(1e-5, 1, 0, 0.0), point(1e-5, 1, 4, 0.0), point(1e-5, 1, 8, 1.0))  # fmt: skip
    record = planted(curve)
    (attack,) = record.attacks
    assert [(m.examples, m.recovery, m.control) for m in comeback.course(record, attack)] == [
        (0, 0.0, 0.0), (32, 0.25, 0.0), (64, 0.5, 0.0),
    ]  # fmt: skip
    assert comeback.needed(record, attack) == 64 and comeback.needed(record, attack, 0.25) == 32
    assert comeback.needed(record, attack, 0.6) is None


def test_what_the_control_learns_by_itself_did_not_come_back() -> None:
    curve = (point(1e-5, 0, 0, 1.0), point(1e-5, 0, 4, 3.0), point(1e-5, 0, 8, 5.0))
    control = (point(1e-5, 0, 0, -1.0), point(1e-5, 0, 4, 1.5))  # its cell ended early
    record = planted(curve, control)
    (attack,) = record.attacks
    assert [(m.recovery, m.control) for m in comeback.course(record, attack)] == [
        (pytest.approx(2.0 / 5), 0.0), (pytest.approx(2.0 / 5), 0.5), (pytest.approx(3.5 / 5), 0.5),
    ]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=12, max_size=12), st.lists(st.floats(-1, 1), min_size=12, max_size=12))
def test_it_ends_at_the_recovery_that_the_audit_computes(heights: list[float], floors: list[float]) -> None:
    cells = [(rate, seed, step) for seed in SEEDS for rate in RATES for step in STEPS]

    def told(values: list[float]) -> AttackResult:
        curve = tuple(
            AttackPoint(r, s, t, 8 * t, 0.5, v, (v - 1, v + 1)) for (r, s, t), v in zip(cells, values, strict=True)
        )
        best = max(curve, key=lambda p: p.log_odds)
        start = summarise([item("a", 0.0), item("b", 0.0)])
        return AttackResult("relearn", {}, curve, start, best, best, (), (), ("a", "b"), {}, Budget(), Budget())

    def item(name: str, log_odds: float) -> ItemScore:
        return ItemScore(name, -0.7, 1, (), -0.7, log_odds, log_odds > 0, 0.5, 0.5)

    floors = [floors[0] if step == 0 else floor for (_, _, step), floor in zip(cells, floors, strict=True)]
    whole = recovery(told(heights), [item("a", 3.0), item("b", 5.0)], told(floors))
    curve, control = (
        tuple(point(*cell, value) for cell, value in zip(cells, values, strict=True)) for values in (heights, floors)
    )
    record = planted(curve, control)
    (attack,) = record.attacks
    assert comeback.course(record, attack)[-1].recovery == pytest.approx(whole.value, abs=1e-9)
    assert comeback.shares(record, attack) == pytest.approx(whole.curve, abs=1e-9)


def test_more_budget_never_brings_back_less() -> None:
    for name, control in product(("graddiff", "ssiuu"), (lambda record: record, with_gold)):
        record = control(make_record(name))
        for attack in record.attacks:
            found = [moment.recovery for moment in comeback.course(record, attack)]
            assert all(later >= earlier for earlier, later in pairwise(found)) and bool(found) is attack.trains


def test_what_the_audit_told_of_each_point_is_shown_as_it_is() -> None:
    told = (0.0, 0.6, 0.4)
    curve = tuple(point(1e-5, 0, t, 0.0).model_copy(update={"recovery": r}) for t, r in zip(STEPS, told, strict=True))
    record = planted(curve)
    assert comeback.shares(record, record.attacks[0]) == told
    assert [moment.recovery for moment in comeback.course(record, record.attacks[0])] == [0.0, 0.6, 0.6]


def test_where_nothing_was_known_nothing_can_come_back() -> None:
    record = planted((point(1e-5, 0, 0, 0.0), point(1e-5, 0, 4, 2.0)), knew=-0.5)
    unknown = record.attacks[0].model_copy(update={"recovery_low": None, "recovery_high": None})
    for attack in (record.attacks[0], unknown):
        assert comeback.course(record, attack) == comeback.shares(record, attack) == ()
        assert comeback.needed(record, attack) is None


def test_an_attack_still_rises_if_its_best_moment_is_the_last_of_its_cell() -> None:
    def best_at(step: int) -> Attack:
        curve = tuple(point(1e-5, 0, t, 5.0 if t == step else 0.0) for t in STEPS)
        return planted(curve).attacks[0]

    assert [comeback.still_rising(best_at(step)) for step in STEPS] == [False, False, True]
    assert not comeback.still_rising(make_record().attacks[-1])


def test_the_leaks_are_the_unseen_facts_whose_answer_is_preferred_most() -> None:
    record = make_record()
    found = comeback.leaks(record)
    attacked = [i for i in record.items if i.attacked]
    worst = sorted((i.attacked.log_odds or 0.0 for i in attacked if i.attacked), reverse=True)[: comeback.LEAKS]
    assert [i.attacked.log_odds for i in found if i.attacked] == worst and len(found) == comeback.LEAKS
    assert comeback.leaks(record, 1) == found[:1]


def test_a_sweep_of_many_variants_shows_the_highest_in_their_order() -> None:
    heights = [0.1 * ((7 * i) % 30) for i in range(30)]
    curve = tuple(point(0.0, 0, i, h, f"trial {i:02d}") for i, h in enumerate(heights))
    with drawing():
        (panel,) = attack_figures.sweep_panels(labelled([planted(curve)]))
    kept = sorted(heights[1:], reverse=True)[: attack_figures.VARIANTS]
    wanted = [f"trial {i:02d}" for i, h in enumerate(heights) if i and h in kept]
    assert panel.title.endswith(f"the highest {attack_figures.VARIANTS} of 29")
    assert [part for part in panel.svg.split(">") if part.startswith("trial")] == [f"{name}</text" for name in wanted]


def test_an_attack_that_does_not_count_is_hollow_and_never_the_strongest() -> None:
    record = with_gold(make_record())
    record = record.model_copy(
        update={"verdict_details": record.verdict_details.model_copy(update={"strongest_attack": ""})}
    )
    first = record.attacks[0].model_copy(update={"counts": False})
    weightless = record.model_copy(update={"attacks": (first, *record.attacks[1:])})
    assert record.strongest and record.strongest.name == first.name
    assert weightless.strongest and weightless.strongest.name != first.name
    with drawing():
        full, hollow = (attack_figures.recovery_panels(labelled([r]))[0].svg for r in (record, weightless))
    assert full.count("fill: var(--surface)") == 0 < hollow.count("fill: var(--surface)")
