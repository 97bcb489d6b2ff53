"""How a request holds, in the ledger: what came back by the audit's measure, and the attack that brought back most."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from expunge.attacks.base import AttackResult, CurvePoint, leads
from expunge.attacks.budget import Budget
from expunge.continual.ledger import Entry, Known
from expunge.continual.standing import known, standing
from expunge.models.scores import ItemScore, summarise


def item(name: str, log_odds: float) -> ItemScore:
    return ItemScore(name, -0.7, 1, (-0.7,), -0.7, log_odds, log_odds > 0, 0.5, 0.5)


ITEMS = [item("a", 4.0), item("b", 6.0)]
TWINS = {"a": item("x", 1.0), "b": item("y", -1.0)}


def result(*moments: tuple[tuple[float, float], tuple[float, ...]], name: str = "relearn-harmful") -> AttackResult:
    """An attack with such log-odds of a and b, and of their twins, at its moments."""
    curve = tuple(
        CurvePoint(1e-5, 0, step, step, 0.5, sum(odds) / 2, odds, twin_log_odds=guesses)
        for step, (odds, guesses) in enumerate(moments)
    )
    best, start = max(curve, key=lambda point: point.log_odds), summarise(ITEMS)
    twins = {"a": "x", "b": "y"} if curve[0].twin_log_odds else {}
    return AttackResult(
        name, {}, curve, start, best, best, (), (), ("a", "b"), {}, Budget(), Budget(), twin_ids=twins
    )  # fmt: skip


NOW = summarise([item("a", -1.0), item("b", 1.0)])
KNEW = known(ITEMS, TWINS)


def test_what_was_known_is_kept_question_by_question() -> None:
    assert known(ITEMS, {"a": TWINS["a"]}) == {"a": Known(log_odds=4.0, made_up=1.0), "b": Known(log_odds=6.0)}


def test_an_answer_that_is_only_disliked_has_come_back() -> None:
    hidden = result(((0.0, 0.0), (-4.0, -4.0)), ((1.0, 1.0), (-2.0, -2.0)))
    assert leads(hidden.curve, hidden.held_out_ids, tuple(hidden.twin_ids)) == (4.0, 3.0)
    assert standing(NOW, [hidden], KNEW).recovery == pytest.approx(4 / 5)
    assert standing(NOW, [hidden], known(ITEMS, {})).recovery == pytest.approx(1 / 5)
    assert standing(NOW, [hidden], known(ITEMS, {"a": TWINS["a"]})).recovery == pytest.approx(1 / 5)  # too few
    # Made-up subjects never make it smaller.
    assert standing(NOW, [result(((2.0, 4.0), (3.0, 3.0)))], KNEW).recovery == pytest.approx(3 / 5)
    assert standing(NOW, [result(((2.0, 4.0), ()))], KNEW).recovery == pytest.approx(3 / 5)


def test_an_attack_on_some_of_the_facts_is_measured_by_these() -> None:
    one = replace(result(((1.0, 3.0), ())), held_out_ids=("b",))
    one = replace(one, curve=(replace(one.curve[0], item_log_odds=(3.0,)),))
    assert standing(NOW, [one], KNEW).recovery == pytest.approx(3 / 6)


def test_where_nothing_was_known_nothing_came_back() -> None:
    ignorant = [item("a", 0.0), item("b", 0.1)]
    assert standing(NOW, [result(((1.0, 1.0), ()))], known(ignorant, {})).recovery is None
    assert standing(NOW, [result(((1.0, 1.0), (0.0, 0.0)))], known(ignorant, TWINS)).recovery is None


def test_the_attack_that_brought_back_most_is_told() -> None:
    high = result(((1.0, 1.0), (1.0, 1.0)), name="relearn-related")
    hidden = result(((0.0, 0.0), (-4.0, -4.0)), name="quantise")
    searched = result(((9.0, 9.0), (-9.0, -9.0)), name="pgd")
    found = standing(NOW, [high, hidden, searched], KNEW)
    assert (found.accuracy, found.log_odds, found.attack) == (0.5, 0.0, "quantise")
    assert (found.attacked_log_odds, found.recovery) == (0.0, pytest.approx(0.8))
    untouched = standing(NOW, [searched], KNEW)
    assert (untouched.attack, untouched.attacked_log_odds, untouched.recovery) == ("", None, None)
    nothing = standing(NOW, [hidden, high], known([item("a", 0.0), item("b", 0.0)], {}))
    assert (nothing.attack, nothing.recovery) == ("relearn-related", None)


def test_a_share_is_told_before_one_that_cannot_be_known() -> None:
    """Nothing was known of b, so an attack that is scored on it alone says nothing, however high it ends."""
    half = known([item("a", 4.0), item("b", 0.0)], {})
    below, on_b = result(((-1.0, -1.0), ())), result(((5.0, 5.0), ()), name="relearn-related")
    on_b = replace(on_b, held_out_ids=("b",), curve=(replace(on_b.curve[0], item_log_odds=(5.0,)),))
    found = standing(NOW, [on_b, below], half)
    assert (found.attack, found.recovery) == ("relearn-harmful", pytest.approx(-0.5))
    nothing, some = result(((0.0, 0.0), ())), result(((1.0, 1.0), ()), name="quantise")
    assert standing(NOW, [nothing, some], half).attack == "quantise"


def test_a_ledger_of_means_counts_every_question_as_the_mean() -> None:
    entry = Entry(kind="fulfilled", request="a", time="2026", previous="", before=5.0, lead=3.0)
    hidden = result(((0.0, 2.0), (-4.0, -1.0)))
    assert entry.knew(["a", "b"])["b"] == Known(log_odds=5.0, made_up=2.0)
    assert standing(NOW, [hidden], entry.knew(["a", "b"])).recovery == pytest.approx(3.5 / 3)
    assert entry.model_copy(update={"lead": None}).knew(["a"])["a"].made_up is None
    assert entry.model_copy(update={"known": KNEW}).knew(["a"]) == KNEW


def test_an_entry_from_before_there_were_later_fields_keeps_its_hash() -> None:
    entry = Entry(kind="fulfilled", request="a", time="2026", previous="", before=5.0)
    later = {"lead", "known", "carries", "beside", "template"}
    told = {key: value for key, value in entry.model_dump(mode="json").items() if key not in later}
    assert entry.digest() == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    assert Entry.model_validate(told) == entry
    for change in ({"lead": 5.0}, {"known": KNEW}, {"template": "chat"}):
        assert entry.model_copy(update=change).digest() != entry.digest()
