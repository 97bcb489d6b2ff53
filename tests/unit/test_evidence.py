"""What joins the attacks: the facts in other words, against whichever stands higher of those who never knew."""

from __future__ import annotations

import math

import pytest

from expunge.attacks.budget import Budget
from expunge.audit.control import GOLD_MODEL, IGNORANCE, residual
from expunge.audit.evidence import Tried, gather
from expunge.audit.snapshot import Snapshot
from expunge.models.scores import ItemScore


def said(odds: float, reworded: float, facts: int = 8) -> Snapshot:
    """Facts, each asked in two ways."""

    def items(value: float) -> tuple[ItemScore, ...]:
        return tuple(
            ItemScore(f"i{n}", -1.0, 1, (-1.0 - value, -1.0 - value), -1.0, value, value > 0, 0.5, 1 / 3)
            for n in range(facts)
        )

    return Snapshot(items(odds), (), {"paraphrase": items(reworded)}, samples={}, rouge_l={})


@pytest.mark.parametrize(
    ("guessed", "share", "kind"),
    [(1.0, 0.0, GOLD_MODEL), (-1.0, 0.25, IGNORANCE), (None, 0.25, IGNORANCE)],
    ids=["it can be guessed", "it is avoided", "nobody to ask"],
)
def test_other_words(guessed: float | None, share: float, kind: str) -> None:
    before, after = said(4.0, 4.0), said(0.0, 1.0)
    left = residual(after.forget, before.forget)
    control = None if guessed is None else said(0.0, guessed)
    found = gather(before, after, left, [Tried("relearn-harmful", left, Budget())], control)
    (reworded,) = (each.recovery for each in found.attacks if each.name == "paraphrase")
    assert (reworded.value, reworded.control) == (pytest.approx(share), kind)


def test_a_few_facts_in_other_words_decide_nothing() -> None:
    """The interval over one of them has no width."""
    before, after = said(4.0, 4.0, facts=7), said(0.0, 1.0, facts=7)
    left = residual(after.forget, before.forget)
    found = gather(before, after, left, [Tried("relearn-harmful", left, Budget())])
    assert [each.name for each in found.attacks] == ["relearn-harmful"]


def test_a_fact_in_other_words_that_cannot_be_scored_is_left_out() -> None:
    """An item without options has no log-odds; among others it says nothing, and hides nothing of what they say."""
    mute = ItemScore("mute", -1.0, 1, (), -1.0, math.nan, True, 0.5, 1.0)
    before, after = said(4.0, 4.0), said(0.0, 1.0)
    for snapshot in (before, after):
        snapshot.test["paraphrase"] = (*snapshot.test["paraphrase"], mute)
    left = residual(after.forget, before.forget)
    found = gather(before, after, left, [Tried("relearn-harmful", left, Budget())])
    (reworded,) = (each.recovery for each in found.attacks if each.name == "paraphrase")
    assert reworded.value == pytest.approx(0.25)
