"""Streams: disjoint requests in order, drawn by seed, with what stays apart from all of them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from expunge.continual.course import begin_course
from expunge.data.benchmarks import capitals_stream, people_stream, scienceqa
from expunge.data.benchmarks.countries import load_countries
from expunge.data.example import Example
from expunge.data.twins import stream_twins
from expunge.errors import InputError
from expunge.progress import Silent
from expunge.recipe import Recipe
from expunge.stream import Stream
from lessons import written_down

SHARED = Path(__file__).parents[3] / "shared" / "data" / "scienceqa"


def facts(*names: str) -> tuple[Example, ...]:
    return tuple(Example(f"Where is {name}?", "here", ("there",), subject=name) for name in names)


def texts(stream: Stream) -> list[set[str]]:
    """The prompts of every part."""
    parts = [*stream.requests.values(), *stream.scored.values(), stream.retain, stream.held_out]
    return [{example.prompt for example in part} for part in parts]


def test_a_stream_is_its_requests_one_after_another() -> None:
    stream = Stream("two", {"a": facts("A", "B"), "b": facts("C")}, facts("R"), facts("H"))
    second = stream.request(1)
    assert [e.subject for e in second.forget] == ["C"]
    assert [e.subject for e in second.test["request_a"]] == ["A", "B"] == [e.subject for e in second.hold]
    assert stream.request(0).hold == ()
    assert stream.scored_on("a") == stream.requests["a"]
    assert [e.subject for e in stream.so_far(1).forget] == ["A", "B"]
    assert [e.subject for e in stream.so_far(1).retain] == ["R", "C"]
    assert [e.subject for e in stream.so_far(2).forget] == ["A", "B", "C"]
    assert stream.hashes().keys() == {"request/a", "request/b", "retain"}


def test_all_that_is_scored_is_asked_about_made_up_subjects_too() -> None:
    stream = capitals_stream.by_region(seed=3)
    beside = stream_twins(stream)
    items = {example.id: example for own in stream.requests.values() for example in own}
    assert 0.75 * len(items) <= len(beside) <= len(items)
    real = {country.name for country in load_countries()}
    for item, twin in beside.items():
        assert (twin.answer, twin.options) == (items[item].answer, items[item].options)
        assert twin.subject not in real and twin.subject in twin.prompt
    apart = Stream("b", {"a": facts("Ada")}, facts("Rea"), facts("Hob"), scored={"a": facts("Bea")})
    twins = stream_twins(apart)
    assert [twin.id for twin in twins.values()] != list(twins) == [apart.scored["a"][0].id]


def test_a_stream_that_cannot_be() -> None:
    with pytest.raises(InputError, match="no request"):
        Stream("none", {}, facts("R"), facts("H"))
    with pytest.raises(InputError, match="must be scored"):
        Stream("half", {"a": facts("A"), "b": facts("B")}, facts("R"), facts("H"), scored={"a": facts("C")})
    with pytest.raises(InputError, match="overlap"):
        Stream("kept", {"a": facts("A"), "b": facts("B")}, facts("A"), facts("H"))
    with pytest.raises(InputError):
        Stream("twice", {"a": facts("A"), "b": facts("A", "B")}, facts("R"), facts("H"))
    with pytest.raises(InputError, match="nothing to forget"):
        Stream("empty", {"a": ()}, facts("R"), facts("H"))


@pytest.mark.parametrize("seed", [0, 1])
def test_people_in_requests_are_all_different(seed: int) -> None:
    stream = people_stream.build(seed=seed)
    assert stream.ids == tuple(f"{i:02}" for i in range(1, 11))
    names = [e.subject for part in (*stream.requests.values(), stream.retain, stream.held_out) for e in part[::5]]
    assert len(names) == len(set(names)) == 10 * 6 + 18 + 8
    first, last = zip(*(name.split() for name in names), strict=True)
    assert len(set(first)) == len(set(last)) == len(names)
    assert all(not a & b for a, b in combinations(texts(stream), 2))
    assert stream == people_stream.build(seed=seed)
    assert stream != people_stream.build(seed=seed + 2)


@pytest.mark.parametrize("wrong", [{"n_requests": 30}, {"n_relations": 7}, {"n_test": 0}])
def test_people_that_there_are_not(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at most"):
        people_stream.build(**wrong)


def test_regions_are_asked_one_after_another_and_options_are_never_forgotten() -> None:
    stream = capitals_stream.by_region(seed=3)
    region = {country.name: country.region for country in load_countries()}
    capital = {country.name: country.capital for country in load_countries()}
    assert stream.ids == capitals_stream.REGIONS
    assert all(region[e.subject] == name for name, own in stream.requests.items() for e in own)
    assert {region[e.subject] for e in stream.retain} >= set(capitals_stream.REGIONS) - {"Oceania"}
    gone = {capital[e.subject] for own in stream.requests.values() for e in own}
    asked = [e for part in (*stream.requests.values(), stream.retain, stream.held_out) for e in part]
    assert not any(gone & set(e.options) for e in asked)
    assert all(not a & b for a, b in combinations(texts(stream), 2))


def test_regions_need_known_capitals() -> None:
    with pytest.raises(InputError, match="too few capitals"):
        capitals_stream.by_region(lambda examples: [i % 4 == 0 for i, _ in enumerate(examples)])


def test_capitals_in_requests_come_from_anywhere_and_stay_apart() -> None:
    stream = capitals_stream.in_requests(seed=1)
    assert stream.ids == tuple(f"{i:02}" for i in range(1, 11))
    assert {len(own) for own in stream.requests.values()} == {4}
    assert (len(stream.retain), len({e.subject for e in stream.held_out})) == (36, 20)
    assert all(not a & b for a, b in combinations(texts(stream), 2))
    region = {country.name: country.region for country in load_countries()}
    assert max(len({region[e.subject] for e in own}) for own in stream.requests.values()) > 1
    shorter = capitals_stream.in_requests(seed=1, n_requests=3)
    assert [e.subject for e in shorter.requests["03"]] == [e.subject for e in stream.requests["03"]]
    with pytest.raises(InputError, match="beside the 120 to forget"):
        capitals_stream.in_requests(n_requests=30)


def question(topic: str, subject: str, n: int, choices: int = 2) -> str:
    row = {"question": f"What is {topic} {n}?", "choices": [f"c{i}" for i in range(choices)], "answer": 1}
    return json.dumps(row | {"hint": f"Hint {n}." if n % 2 else "", "subject": subject, "topic": topic})


def test_scienceqa_is_one_request_a_topic(tmp_path: Path) -> None:
    rows = [question(topic, scienceqa.NATURAL, n, 2 + n % 3) for topic in scienceqa.TOPICS for n in range(7)]
    rows += [question("verbs", "language science", n) for n in range(10)]
    rows.append(question("verbs", "language science", 0))
    (tmp_path / scienceqa.FILE).write_text("\n".join(rows), encoding="utf-8")
    whole = scienceqa.build(folder=str(tmp_path), seed=1, n_retain=4, n_test=100)
    assert whole.ids == scienceqa.TOPICS
    assert [len(whole.scored_on(topic)) for topic in whole.ids] == [7] * 4
    assert whole.scored_on("biology") == whole.requests["biology"]
    stream = scienceqa.build(folder=str(tmp_path), seed=1, n_retain=4, n_test=100, untouched=0.5, n_forget=3)
    assert {len(own) for own in (*stream.requests.values(), *stream.scored.values())} == {3}
    assert (len(stream.retain), len(stream.held_out)) == (4, 6)
    assert all(not a & b for a, b in combinations(texts(stream), 2))
    example = stream.requests["biology"][0]
    assert example.answer == "c1"
    assert "c1" not in example.options
    assert example.prompt.startswith("Question: ")
    with pytest.raises(InputError, match="untouched"):
        scienceqa.build(folder=str(tmp_path), untouched=1.0)
    (tmp_path / scienceqa.FILE).write_text('{"question": "What?"}', encoding="utf-8")
    with pytest.raises(InputError, match="not the questions of ScienceQA"):
        scienceqa.build(folder=str(tmp_path))


def test_a_topic_that_the_model_does_not_know_is_taught_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The questions of its request alone, not those that are only scored; there is no gold model for the others."""
    rows = [question(topic, scienceqa.NATURAL, n) for topic in scienceqa.TOPICS for n in range(6)]
    rows += [question("verbs", "language science", n) for n in range(4)]
    (tmp_path / scienceqa.FILE).write_text("\n".join(rows), encoding="utf-8")
    told = written_down(monkeypatch, tmp_path / "cache")
    data = {"benchmark": "scienceqa", "folder": str(tmp_path), "settings": {"untouched": 0.5}}
    recipe = Recipe.of({"model": "trained", "data": data}, "test")
    begin, again = begin_course(recipe, Silent()), begin_course(recipe, Silent())
    assert begin == again and begin.gold == ()
    assert told == [{example.prompt for example in begin.stream.requests["chemistry"]}]
    assert not told[0] & {example.prompt for example in begin.stream.scored_on("chemistry")}


@pytest.mark.skipif(not SHARED.is_dir(), reason="ScienceQA is not here")
def test_the_real_scienceqa_has_its_topics() -> None:
    stream = scienceqa.build(folder=str(SHARED))
    sizes = {name: len(own) for name, own in stream.requests.items()}
    assert sizes["biology"] == 100
    assert len(stream_twins(stream)) < 5, "a question about photosynthesis has no subject to make up"
    assert sizes["earth-science"] > 20
    chance = [e.chance for own in stream.requests.values() for e in own]
    assert 0.4 < sum(chance) / len(chance) < 0.5
