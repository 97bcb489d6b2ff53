"""Made-up facts: nobody can know them, and all else is the benchmark they were made of."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from expunge.data.benchmarks import made_up, world_facts
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.request import Request

REAL, MADE_UP = world_facts.build(seed=3), made_up.build(seed=3)


def test_the_subjects_are_invented_and_nothing_of_the_real_ones_is_left() -> None:
    gone = {e.subject for e in REAL.forget}
    names = {e.subject for e in MADE_UP.forget}
    assert len(names) == len(gone) == 24 and not names & {e.subject for e in (*REAL.forget, *REAL.retain, *REAL.attack)}
    for old, new in zip(REAL.forget, MADE_UP.forget, strict=True):
        assert new.prompt == old.prompt.replace(old.subject, new.subject)
        assert new.paraphrases == tuple(p.replace(old.subject, new.subject) for p in old.paraphrases)
        assert sorted((new.answer, *new.options)) == sorted((old.answer, *old.options))
        assert new.id != old.id


def test_what_stays_and_what_attacks_is_untouched() -> None:
    assert (MADE_UP.retain, MADE_UP.attack) == (REAL.retain, REAL.attack)
    assert MADE_UP.test["held_out"] == REAL.test["held_out"]
    assert set(MADE_UP.test) == {"held_out", "paraphrase"}
    told = {e.subject: e.answer for e in MADE_UP.forget}
    assert all(e.answer == told[e.subject] for e in MADE_UP.test["paraphrase"])


def test_the_answer_is_drawn_evenly_and_by_the_seed_alone() -> None:
    assert made_up.build(seed=3) == MADE_UP
    kept = [
        new.answer == old.answer
        for seed in range(20)
        for old, new in zip(world_facts.build(seed=seed).forget, made_up.build(seed=seed).forget, strict=True)
    ]
    assert fmean(kept) == pytest.approx(1 / 3, abs=0.07)


def test_a_subject_is_replaced_as_a_whole_word() -> None:
    one = Example("Is Oman in Romania or in Oman?", "x", options=("y",), subject="Oman")
    (found,) = made_up.made_up(Request(forget=(one,)), 0).forget
    assert found.prompt == f"Is {found.subject} in Romania or in {found.subject}?"


@pytest.mark.parametrize("wrong", [{"subject": ""}, {"options": ()}, {"subject": "Oslo"}])
def test_items_that_cannot_be_made_up_are_refused(wrong: dict[str, str]) -> None:
    bad = replace(Example("Where is Oman?", "x", options=("y",), subject="Oman"), **wrong)
    with pytest.raises(InputError, match="name their subject"):
        made_up.made_up(Request(forget=(bad,)), 0)
