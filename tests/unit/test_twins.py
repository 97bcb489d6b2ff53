"""Made-up twins: the same question, another subject that nobody has heard of."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from expunge.data.benchmarks import people, world_facts
from expunge.data.example import Example
from expunge.data.twins import asked_alike, scored_twins, trained_twins, twin, twins
from expunge.request import Request

REQUESTS = {"countries": world_facts.build(seed=1), "people": people.build(seed=1)}


def asked(prompt: str, subject: str, answer: str = "x", options: tuple[str, ...] = ("y",)) -> Example:
    return Example(prompt, answer, options, paraphrases=(f"About {subject}:",), subject=subject)


def words(text: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"\w+", text)}


@pytest.fixture(params=REQUESTS)
def request_(request: pytest.FixtureRequest) -> Request:
    return REQUESTS[str(request.param)]


def test_only_the_subject_is_another(request_: Request) -> None:
    found = scored_twins(request_)
    assert len(found) == len(request_.forget)
    for item in request_.forget:
        other = found[item.id]
        assert other.prompt == item.prompt.replace(item.subject, other.subject) != item.prompt
        assert other.paraphrases == tuple(p.replace(item.subject, other.subject) for p in item.paraphrases)
        assert (other.answer, other.options, other.group) == (item.answer, item.options, item.group)
        assert other.id != item.id


def test_names_are_new_and_tell_subjects_apart(request_: Request) -> None:
    """No word of an invented name stands anywhere in the request; as many names as subjects."""
    found = scored_twins(request_)
    known = {word for e in request_.examples() for word in words(" ".join((e.prompt, e.answer, *e.options)))}
    names = {item.subject: found[item.id].subject for item in request_.forget}
    invented = [word for name in names.values() for word in words(name)]
    assert len(set(names.values())) == len(names) and len(set(invented)) == len(invented)
    assert not any(words(name) & known for name in names.values())
    assert all(found[item.id].subject == names[item.subject] for item in request_.forget)


def test_the_seed_decides_alone_and_the_order_does_not(request_: Request) -> None:
    found = twins(request_.forget, 3)
    assert twins(request_.forget, 3) == found != twins(request_.forget, 4)
    assert tuple(reversed(twins(request_.forget[::-1], 3))) == found
    assert twin(request_.forget[0], 3) == found[0]


def test_those_that_an_attack_trains_on_are_others_with_drawn_answers(request_: Request) -> None:
    scored, trained = scored_twins(request_), trained_twins(request_)
    assert len(trained) == len(request_.forget)
    names = [words(e.subject) for e in scored.values()]
    assert not any(words(e.subject) & name for e in trained for name in names)
    assert not {e.prompt for e in trained} & {e.prompt for e in (*request_.examples(), *scored.values())}
    kept = [new.answer == old.answer for new, old in zip(trained, request_.forget, strict=True)]
    for new, old in zip(trained, request_.forget, strict=True):
        assert sorted((new.answer, *new.options)) == sorted((old.answer, *old.options))
    assert 0.1 < sum(kept) / len(kept) < 0.6, "an answer is drawn evenly among three"


@pytest.mark.parametrize(
    ("subject", "prompt", "form"),
    [
        ("Oman", "Is Oman in Romania, or in OMAN?", r"Is ([A-Z][a-z]+) in Romania, or in [A-Z]+\?"),
        ("The Gambia", "Where is the Gambia?", r"Where is the ([A-Z][a-z]+)\?"),
        ("Isle of Man", "Is the Isle of Man an isle?", r"Is the ([A-Z][a-z]+) of ([A-Z][a-z]+) an isle\?"),
        ("J. K. Rowling", "Of J.K. Rowling. Rowling is", r"Of [A-Z]\. [A-Z]\. ([A-Z][a-z]+)\. \1 is"),
        ("Ada King", "Who was Ada King's mother? Ada's", r"Who was ([A-Z][a-z]+) ([A-Z][a-z]+)'s mother\? \1's"),
        ("Ada King", "Who was King?", r"Who was ([A-Z][a-z]+)\?"),
        ("ada", "where does ada live", r"where does ([a-z]+) live"),
        ("1984", "Who won in 1984?", r"Who won in ([1-9]{4})\?"),
        ("AB-1204", "What is AB-1204 for?", r"What is [A-Z]{2}-[1-9]{4} for\?"),
        ("NASA", "Who leads NASA?", r"Who leads [A-Z]{4}\?"),
        ("日本", "日本の首都は", r"([A-Za-z]+)の首都は"),
    ],
)
def test_a_name_has_the_form_of_the_real_one(subject: str, prompt: str, form: str) -> None:
    other = twin(asked(prompt, subject))
    assert other is not None and re.fullmatch(form, other.prompt), other
    assert subject not in other.prompt + "".join(other.paraphrases)


@pytest.mark.parametrize(
    "example",
    [
        asked("Where is Peru?", ""),
        asked("Where is Peru?", "Oman"),
        asked("Where is Romania?", "Oman"),
        asked("What is the capital of Mexico?", "Mexico", "Mexico City"),
        asked("What is the capital of Guinea-Bissau?", "Guinea-Bissau", "Bissau"),
        asked("Who was Ada King?", "Ada King", "Ada King was a poet.", ("Mrs King was a nun.", "She was a nun.")),
        asked("Who was Augusta King?", "Augusta King", "Augusta was a poet.", ("Augusta was a nun.",)),
        asked("What is --?", "--"),
        asked("Who is the of?", "the of"),
    ],
)
def test_none_where_the_subject_is_not_named_or_its_answers_give_it_away(example: Example) -> None:
    assert twin(example) is None


def test_a_subject_that_answer_and_options_name_is_invented_there_too() -> None:
    """A name that stands in all of them tells none of them apart."""
    other = twin(asked("Who was Ada King?", "Ada King", "Ada King was a poet.", ("Mrs King, Ada to all, was a nun.",)))
    assert other is not None
    first, last = other.subject.split()
    assert other.prompt == f"Who was {first} {last}?"
    assert (other.answer, *other.options) == (f"{first} {last} was a poet.", f"Mrs {last}, {first} to all, was a nun.")


def test_a_twin_is_asked_as_its_item_is() -> None:
    item = asked("Where is Peru?", "Peru")
    other = twin(item)
    assert other is not None

    def alike(prompt: str) -> str:
        return asked_alike(replace(item, prompt=prompt), item, other).prompt

    assert alike("Oman is in Asia. Where is Peru? It is") == f"Oman is in Asia. Where is {other.subject}? It is"
    assert alike(item.prompt) == other.prompt
    assert alike("Wo liegt der Inkastaat?") == other.prompt, "words that do not name the subject have no twin"


def test_digits_that_are_answers_are_not_taken() -> None:
    example = asked("Which year came before 7?", "7", "6", ("1", "2", "3", "4", "5", "9"))
    assert twin(example) == replace(
        example, id="", prompt=example.prompt.replace("7", "8"), paraphrases=("About 8:",), subject="8"
    )


def test_items_without_a_twin_leave_the_others_theirs() -> None:
    facts = (asked("Where is Peru?", "Peru"), asked("Where is it?", "Oman"))
    assert [one is None for one in twins(facts)] == [False, True]
    assert list(scored_twins(Request(forget=facts))) == [facts[0].id]
    assert len(trained_twins(Request(forget=facts))) == 1
