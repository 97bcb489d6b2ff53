"""Options for questions that bring none."""

from __future__ import annotations

import random

import pytest

from expunge.data.distractors import POOL, require_options, with_options
from expunge.data.example import Example
from expunge.errors import InputError

CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Chad": "N'Djamena", "Mali": "Bamako"}


def capital(country: str) -> Example:
    return Example(f"What is the capital of {country}?", CAPITALS[country])


CURRENCY = Example("Which money do they pay with in Japan?", "yen")
GOES = (capital("France"), capital("Chad"))
STAYS = (capital("Spain"), capital("Italy"), capital("Mali"), CURRENCY)


def test_options_are_answers_to_questions_of_the_same_kind_that_stay() -> None:
    for example in with_options(GOES, STAYS, GOES):
        assert len(example.options) == 2
        assert set(example.options) <= {"Madrid", "Rome", "Bamako"}
        assert example.chance == 1 / 3


def test_what_goes_is_only_a_last_resort() -> None:
    (first, _) = with_options(GOES, STAYS, GOES, n=5)
    assert first.options[3:] == ("yen", "N'Djamena")


def test_the_right_answer_in_any_guise_is_no_option() -> None:
    twice = Example("Name a city of France.", "Lyon"), Example("Name a city of France.", "Nice")
    near = (Example("Name the largest city of France.", "paris"), Example("Name a port of France.", "The city of Lyon"))
    for example in with_options(twice, (*twice, *near), ()):
        assert example.options == ("paris",) if example.answer == "Lyon" else ("paris", "The city of Lyon")


def test_own_options_stay_and_text_gets_none() -> None:
    own, text = Example("Q?", "a", options=("b",)), Example("", "A passage.")
    assert with_options((own, text), STAYS, GOES) == (own, text)


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    many = [Example(f"What is the capital of land {i}?", f"town {i}") for i in range(POOL)]
    shuffled = random.Random(1).sample(many, POOL)
    (one,), (other,), (again,) = (
        with_options(GOES[:1], pool, GOES, seed=seed) for pool, seed in ((many, 0), (many, 1), (shuffled, 0))
    )
    assert one.options == again.options != other.options


def test_a_lonely_question_stays_without_options() -> None:
    assert with_options(GOES[:1], (), GOES[:1])[0].options == ()


def test_a_text_without_a_question_is_no_fact_to_ask_for() -> None:
    """With options or without: nobody can put it to a model, and what cannot be put is found out before any work."""
    for options in ((), ("Another passage.",)):
        with pytest.raises(InputError, match="cannot be asked for"):
            require_options([Example("Q?", "a", ("b",)), Example("", "A passage.", options)])
