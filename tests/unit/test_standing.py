"""How a request holds, in the ledger: by ignorance and by made-up subjects, whichever says more."""

from __future__ import annotations

import hashlib
import json

import pytest

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.attacks.budget import Budget
from expunge.continual.ledger import Entry
from expunge.continual.standing import Known, standing
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


def test_an_answer_that_is_only_disliked_has_come_back() -> None:
    known = Known.of(ITEMS, TWINS)
    assert (known.log_odds, known.lead) == (5.0, 5.0)
    hidden = result(((0.0, 0.0), (-4.0, -4.0)), ((1.0, 1.0), (-2.0, -2.0)))
    assert hidden.leads() == (4.0, 3.0)
    assert known.share(hidden) == pytest.approx(0.8)
    assert Known(5.0).share(hidden) == pytest.approx(0.2)
    # Made-up subjects never make it smaller.
    assert known.share(result(((2.0, 4.0), (3.0, 3.0)))) == pytest.approx(0.6)
    assert known.share(result(((2.0, 4.0), ()))) == pytest.approx(0.6)


def test_where_nothing_was_known_or_few_have_a_twin_there_is_no_such_share() -> None:
    assert Known.of(ITEMS, {"a": TWINS["a"]}).lead is None
    assert Known.of(ITEMS, {}).lead is None
    assert Known(0.0, None).share(result(((1.0, 1.0), ()))) is None
    assert Known(0.05, 0.05).share(result(((1.0, 1.0), (0.0, 0.0)))) is None
    assert Known(0.05, 2.0).share(result(((1.0, 1.0), (0.0, 0.0)))) == pytest.approx(0.5)


def test_the_attack_that_brought_back_most_is_told() -> None:
    known, now = Known.of(ITEMS, TWINS), summarise([item("a", -1.0), item("b", 1.0)])
    high = result(((1.0, 1.0), (1.0, 1.0)), name="relearn-related")
    hidden = result(((0.0, 0.0), (-4.0, -4.0)), name="quantise")
    searched = result(((9.0, 9.0), (-9.0, -9.0)), name="pgd")
    found = standing(now, [high, hidden, searched], known)
    assert (found.accuracy, found.log_odds, found.attack) == (0.5, 0.0, "quantise")
    assert (found.attacked_log_odds, found.recovery) == (0.0, pytest.approx(0.8))
    untouched = standing(now, [searched], known)
    assert (untouched.attack, untouched.attacked_log_odds, untouched.recovery) == ("", None, None)
    unknown = standing(now, [hidden, high], Known(0.0))
    assert (unknown.attack, unknown.recovery) == ("relearn-related", None)


def test_an_entry_from_before_there_were_later_fields_keeps_its_hash() -> None:
    entry = Entry(kind="fulfilled", request="a", time="2026", previous="", before=5.0)
    later = {"lead", "carries", "beside"}
    told = {key: value for key, value in entry.model_dump(mode="json").items() if key not in later}
    assert entry.digest() == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    assert Entry.model_validate(told) == entry
    assert entry.model_copy(update={"lead": 5.0}).digest() != entry.digest()
