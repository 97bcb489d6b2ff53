"""Suites: what they hold can be made, each holds all of the quicker ones, and names mix with those of attacks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from expunge.attacking import choose
from expunge.attacks.catalogue import make_attack
from expunge.attacks.suites import SUITES, Chosen, expand
from expunge.errors import InputError
from expunge.recipe import Recipe

RECIPE = Recipe.of(
    {
        "model": "m",
        "data": {"benchmark": "people"},
        "attacks": {"relearn-benign": {"max_steps": 4}, "relearn-harmful@tenth": {"fraction": 0.1}},
    },
    "test",
)


@pytest.mark.parametrize("suite", SUITES)
def test_every_attack_of_a_suite_can_be_made(suite: str) -> None:
    for name, settings in SUITES[suite].items():
        make_attack(name, settings)


@pytest.mark.parametrize(("quicker", "longer"), list(pairwise(SUITES)))
def test_a_longer_suite_tries_all_that_a_quicker_one_does(quicker: str, longer: str) -> None:
    """So it can only find more: the same attacks, grids that hold the smaller ones, as many steps."""
    for name, settings in SUITES[quicker].items():
        less, more = make_attack(name, settings), make_attack(name, SUITES[longer][name])
        for field, value in vars(less).items():
            wider: Any = getattr(more, field)
            if isinstance(value, tuple):
                assert set(value) <= set(wider), (name, field)
            elif field in ("max_steps", "steps", "iterations", "samples", "original"):
                assert value <= wider, name
            else:
                assert value == wider, (name, field)


def test_suites_and_names_mix() -> None:
    chosen = expand(["relearn-benign", "quick"], {"relearn-benign": {"max_steps": 4}, "quantise": {"bits": [2]}})
    assert list(chosen) == [*SUITES["quick"], "relearn-benign"]
    assert chosen["relearn-benign"] == Chosen({"max_steps": 4}, optional=False)
    assert chosen["quantise"] == Chosen(SUITES["quick"]["quantise"], optional=True)


def test_an_attack_that_is_also_named_for_itself_is_not_left_out() -> None:
    chosen = expand(["relearn-related", "quick"], {})
    assert chosen["relearn-related"] == Chosen(SUITES["quick"]["relearn-related"], optional=False)


def test_of_two_suites_the_longer_one_counts() -> None:
    names = ["standard", "quick"]
    assert {name: each.settings for name, each in expand(names, {}).items()} == SUITES["standard"]


@pytest.mark.parametrize(
    ("name", "hint"), [("quik", "Did you mean 'quick'"), ("relearn-harmfull", "Did you mean 'relearn-harmful'")]
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        expand([name], {})


def test_settings_are_laid_over_a_suite_and_leave_it_as_it_is() -> None:
    before = {name: dict(settings) for name, settings in SUITES["quick"].items()}
    chosen = choose(RECIPE, ["quick"], {"quantise.bits": [3], "max_steps": 2})
    assert chosen["quantise"].settings["bits"] == [3]
    assert chosen["relearn-harmful"].settings["max_steps"] == 2
    assert before == SUITES["quick"]
    assert all(each.optional for each in choose(RECIPE).values())
    assert choose(RECIPE, ["relearn-harmful@tenth"])["relearn-harmful@tenth"].settings == {"fraction": 0.1}
    with pytest.raises(InputError, match="No attack 'relearn-benign' is run"):
        choose(RECIPE, ["quick"], {"relearn-benign.max_steps": 2})
