"""A request says what it means, refuses what contradicts itself, and survives its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.data.example import Example
from expunge.data.sources import read_examples
from expunge.errors import InputError
from expunge.request import FORGET_GROUPS, RETAIN_GROUPS, Request

A = Example("Where is A?", "Oslo", options=("Rome", "Lima"), paraphrases=("A is where?",), subject="A", group="base")
B = Example("Where is B?", "Lima")
C = Example("Where is C?", "Rome", id="my-own-id")
D = Example("Where is D?\u2028\u0085", "Kyiv Київ")


def full() -> Request:
    return Request(
        (A,), (B,), {"held_out": (C,), "empty": ()}, (D,), ("Plain text.", "More\u2028text."), "name", "asked by A"
    )


def test_a_saved_request_comes_back_equal(tmp_path: Path) -> None:
    assert Request.load(full().save(tmp_path / "new" / "folder")) == full()


def test_saving_leaves_only_the_documented_files(tmp_path: Path) -> None:
    full().save(tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    parts = {"forget.jsonl", "retain.jsonl", "attack.jsonl", "text.jsonl", "request.json"}
    assert found == parts | {"test/held_out.jsonl", "test/empty.jsonl"}


def test_what_earlier_requests_made_go_is_a_part_of_its_own(tmp_path: Path) -> None:
    """No file and no hash where there is none, so that requests of before it keep theirs."""
    request = replace(full(), hold=(replace(C, id="other", prompt="Where is E?"),))
    assert Request.load(request.save(tmp_path)) == request
    assert request.hashes().keys() - full().hashes().keys() == {"hold"}
    assert {k: v for k, v in request.hashes().items() if k != "hold"} == full().hashes()
    assert request.hold[0] in request.examples()


def test_a_text_is_saved_as_one_and_not_as_an_answer_without_a_question(tmp_path: Path) -> None:
    text = Example("", "A town on a fjord.", group="towns")
    request = Request((A,), (text,))
    assert Request.load(request.save(tmp_path)) == request
    assert read_examples(tmp_path / "retain.jsonl") == (text,)
    # As it was saved before.
    (tmp_path / "retain.jsonl").write_text(json.dumps(text.to_json()) + "\n")
    assert Request.load(tmp_path) == request


def test_lists_are_accepted_and_frozen() -> None:
    request = Request([A], [B], {"held_out": [C]})  # type: ignore[arg-type, dict-item]
    assert request == Request((A,), (B,), {"held_out": (C,)})


CHANGES: list[tuple[str, Callable[[Request], Request]]] = [
    ("forget", lambda r: replace(r, forget=(replace(A, options=("Rome",)),))),
    ("retain", lambda r: replace(r, retain=())),
    ("test/held_out", lambda r: replace(r, test={**r.test, "held_out": (B, C)})),
    ("attack", lambda r: replace(r, attack=())),
    ("text", lambda r: r.with_text(["Other."])),
]


@pytest.mark.parametrize(("part", "change"), CHANGES, ids=[part for part, _ in CHANGES])
def test_each_hash_covers_its_part_and_no_other(part: str, change: Callable[[Request], Request]) -> None:
    before, after = full().hashes(), change(full()).hashes()
    assert {k for k in before if before[k] != after[k]} == {part}


def test_hashes_are_those_of_canonical_json() -> None:
    # Written out by hand: an auditor must be able to recompute it without this package.
    import hashlib

    text = f'[{{"answer":"Lima","id":"{B.id}","prompt":"Where is B?"}}]'
    assert Request((B,)).hashes()["forget"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Request(()), "nothing to forget"),
        (lambda: Request((A,), (B, A)), "forget and retain overlap"),
        (lambda: Request((A,), (replace(A, id="x", options=()),)), "forget and retain overlap"),
        (lambda: Request((A, A)), "more than once"),
        (lambda: Request((A,), attack=(A,)), "attack and forget overlap"),
        (lambda: Request((A,), (B,), attack=(B,)), "attack and retain overlap"),
        (lambda: Request((A,), test={"held_out": (C,)}, attack=(C,)), "attack and test/held_out overlap"),
        (lambda: Request((A,), hold=(A,)), "hold and forget overlap"),
        (lambda: Request((A,), (B,), hold=(B,)), "hold and retain overlap"),
        (lambda: Request((A,), attack=(B,), hold=(B,)), "attack and hold overlap"),
        (lambda: Request((A,), test={"../up": ()}), "file name"),
    ],
)
def test_contradictions_are_refused(build: Callable[[], Request], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()


def test_the_same_question_with_another_answer_is_no_overlap() -> None:
    Request((A,), (replace(A, answer="Bergen", id="other"),))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"prompt": "a"}', "not a record"),
        ('{"prompt": "a", "answer": 3}', "answer"),
        ('{"prompt": "a", "answer": "b", "colour": "c"}', "colour"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, line: str, says: str) -> None:
    full().save(tmp_path)
    (tmp_path / "forget.jsonl").write_text(json.dumps(A.to_json()) + "\n" + line + "\n")
    with pytest.raises(InputError, match=says) as caught:
        Request.load(tmp_path)
    assert "forget.jsonl" in str(caught.value) and "2" in caught.value.where


def test_a_folder_without_a_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no saved request"):
        Request.load(tmp_path)


def test_no_group_is_on_both_sides() -> None:
    assert not set(FORGET_GROUPS) & set(RETAIN_GROUPS)


def test_plain_text_comes_back_as_an_answer_without_a_prompt(tmp_path: Path) -> None:
    request = Request((A,), (Example("", "A passage of everyday text."),))
    assert Request.load(request.save(tmp_path)) == request
