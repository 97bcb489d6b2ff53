"""Capitals: only undisputed facts, disjoint splits, and wrong answers that no training moves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from expunge.data.benchmarks import BENCHMARKS
from expunge.data.benchmarks.countries import LEFT_OUT, Country, load_countries, plain, read_rows
from expunge.data.benchmarks.world_facts import BASE, MULTI_HOP, PARAPHRASES, SAME_SUBJECT, build
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.request import FORGET_GROUPS, RETAIN_GROUPS, Request

SHARED = Path(__file__).parents[3] / "shared" / "data" / "world_facts" / "countries.jsonl"
COUNTRIES = {country.name: country for country in load_countries()}


@pytest.fixture(scope="module")
def request_0() -> Request:
    return build(seed=0)


def subjects(examples: Sequence[Example]) -> set[str]:
    return {e.subject for e in examples}


def every(request: Request) -> list[Example]:
    return [*request.forget, *request.retain, *request.attack, *chain(*request.test.values())]


@pytest.mark.skipif(not SHARED.is_file(), reason="the data sets beside the repository are absent")
def test_the_shipped_file_is_the_source() -> None:
    import json

    assert read_rows() == [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()]


def test_known_facts_come_out_right() -> None:
    france = Country("France", "Paris", "Europe", "Europe", "French", "euro", "Paris")
    assert COUNTRIES["France"] == france and france.capital_is_largest
    assert COUNTRIES["Turkey"].largest_city == "Istanbul" and not COUNTRIES["Turkey"].capital_is_largest
    assert COUNTRIES["Brazil"].continent == "South America" and COUNTRIES["Peru"].demonym == "Peruvian"
    assert COUNTRIES["Japan"].currency == "yen"


def test_what_is_ambiguous_or_disputed_is_empty() -> None:
    assert COUNTRIES["Dominican Republic"].demonym == ""  # shared with Dominica
    assert COUNTRIES["Bosnia and Herzegovina"].demonym == ""  # two in one
    assert COUNTRIES["Sudan"].largest_city == ""  # Omdurman is about as large
    assert COUNTRIES["Chile"].currency == ""  # the sources name different codes
    assert COUNTRIES["Russia"].continent == ""


def test_dubious_countries_and_telling_names_are_left_out() -> None:
    assert not COUNTRIES.keys() & LEFT_OUT.keys()
    assert not COUNTRIES.keys() & {"Singapore", "Kuwait", "Djibouti", "Luxembourg", "Mexico", "Panama"}
    assert all(plain(c.name) not in plain(c.capital) for c in COUNTRIES.values())
    assert set(LEFT_OUT) <= {row["name"] for row in read_rows()}
    assert len(COUNTRIES) > 120


def test_base_questions_have_the_measured_wording(request_0: Request) -> None:
    for e in (*request_0.forget, *request_0.retain, *request_0.attack, *request_0.test["held_out"]):
        question = f"What is the capital of {e.subject}?"
        assert e.prompt == f"Question: {question} \n Answer: The capital of {e.subject} is"
        assert e.answer == COUNTRIES[e.subject].capital


def test_splits_have_their_sizes_and_share_no_country(request_0: Request) -> None:
    splits = [request_0.forget, request_0.retain, request_0.test["held_out"], request_0.attack]
    assert [len(split) for split in splits] == [24, 40, 20, 16]
    assert len(set().union(*map(subjects, splits))) == 100


def test_the_groups_about_forgotten_countries_ask_what_they_should(request_0: Request) -> None:
    assert set(request_0.test) == {*FORGET_GROUPS, *RETAIN_GROUPS}
    forgotten = {e.subject: e.answer for e in request_0.forget}
    for group in ("paraphrase", "multi_hop", "same_answer", "same_subject"):
        assert subjects(request_0.test[group]) <= forgotten.keys()
    for group in ("paraphrase", "multi_hop", "same_answer"):
        assert all(e.answer == forgotten[e.subject] for e in request_0.test[group])
    assert all(e.answer != forgotten[e.subject] for e in request_0.test["same_subject"])
    assert all(
        f"The {COUNTRIES[e.subject].demonym}" in e.prompt or "called" in e.prompt for e in request_0.test["multi_hop"]
    )
    assert all(e.group == group for group, examples in request_0.test.items() for e in examples)
    assert len(request_0.test["paraphrase"]) == 48 and len(request_0.test["multi_hop"]) >= 40
    assert all(set(e.paraphrases) <= {x.prompt for x in request_0.test["paraphrase"]} for e in request_0.forget)


@pytest.mark.parametrize("seed", range(3))
def test_no_wrong_answer_is_a_forgotten_or_attacked_fact(seed: int) -> None:
    request = build(seed=seed)
    moved = {e.answer for e in (*request.forget, *request.attack)}
    for e in every(request):
        assert len(set(e.options)) == 2 and e.answer not in e.options
        assert not moved & set(e.options)


def test_wrong_answers_are_of_the_same_kind_and_region(request_0: Request) -> None:
    fields = {k.prompt(c): k.asks for c in COUNTRIES.values() for k in (BASE, *PARAPHRASES, *MULTI_HOP, *SAME_SUBJECT)}
    same_region = 0
    for e in every(request_0):
        field = fields.get(e.prompt, "largest_city")
        holders = [[c for c in COUNTRIES.values() if getattr(c, field) == option] for option in e.options]
        assert all(holders)
        same_region += all(any(c.region == COUNTRIES[e.subject].region for c in found) for found in holders)
    assert same_region > 0.75 * len(every(request_0))


def test_the_seed_decides_everything_and_sizes_change_little() -> None:
    assert build(seed=1).hashes() == build(seed=1).hashes()
    assert subjects(build(seed=1).forget) != subjects(build(seed=2).forget)
    small, large = build(seed=1, n_retain=10), build(seed=1, n_retain=50)
    assert subjects(small.forget) == subjects(large.forget)


def test_wrong_answers_avoid_trained_countries_while_others_last(request_0: Request) -> None:
    trained = {e.answer for e in request_0.retain}
    capitals = [e for e in every(request_0) if e.group in ("base", "paraphrase", "multi_hop", "held_out")]
    assert not any(trained & set(e.options) for e in capitals)


def test_only_known_countries_are_drawn() -> None:
    asked: list[Example] = []

    def known(examples: Sequence[Example]) -> list[bool]:
        asked.extend(examples)
        return [len(e.subject) % 4 != 0 for e in examples]

    request = build(known, seed=0, n_retain=20, n_test=10)
    assert len(asked) == len(COUNTRIES) and all(len(e.options) == 4 for e in asked)
    assert all(len(s) % 4 for s in subjects([*request.forget, *request.retain, *request.attack]))
    assert all(len(s) % 4 for s in subjects(request.test["held_out"]))


def test_a_model_that_knows_too_little_is_told_so() -> None:
    with pytest.raises(InputError, match="100 countries, and the model knows the capital of 3 only"):
        build(lambda examples: [i < 3 for i in range(len(examples))])


def test_the_registry_names_each_benchmark_once() -> None:
    assert all(name == benchmark.name and benchmark.summary for name, benchmark in BENCHMARKS.items())
    assert BENCHMARKS["world_facts"].build(seed=0) == build(seed=0)
