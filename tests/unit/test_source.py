"""A request that is read from files: repeats, ids, and what cannot be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.errors import InputError
from expunge.source import read_request


def write(path: Path, *rows: tuple[str, str, str]) -> str:
    """Rows of an id (none where it is empty), a prompt and an answer."""
    named = [{"prompt": prompt, "answer": answer, **({"id": name} if name else {})} for name, prompt, answer in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    return str(path)


@pytest.fixture
def forget(tmp_path: Path) -> str:
    return write(tmp_path / "forget.jsonl", ("", "Where is A?", "Oslo"))


@pytest.mark.parametrize("part", ["retain", "hold", "test"])
def test_repeats_are_left_out_and_told_of(
    part: str, forget: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("", "Where is B?", "Rome"), ("1", "Where is C?", "Lima"), ("2", "Where is B?", "Rome")]
    path = write(tmp_path / "more.jsonl", *rows, rows[1])
    request = read_request(forget, **({"test": {"more": path}} if part == "test" else {part: path}))  # type: ignore[arg-type]
    found = request.test["more"] if part == "test" else getattr(request, part)
    assert [(example.prompt, example.answer) for example in found] == [row[1:] for row in rows[:2]]
    assert "2 of 4 records repeat others" in caplog.text


@pytest.mark.parametrize("part", ["retain", "hold", "test"])
def test_one_id_for_two_facts_is_refused(part: str, forget: str, tmp_path: Path) -> None:
    """Scores are kept by id: the page would show the words of one with the score of the other."""
    path = write(tmp_path / "more.jsonl", ("1", "Where is B?", "Rome"), ("1", "Where is C?", "Lima"))
    with pytest.raises(InputError, match=r"Two different records have the id '1'.*Where is C"):
        read_request(forget, **({"test": {"more": path}} if part == "test" else {part: path}))  # type: ignore[arg-type]


def test_one_id_for_two_facts_that_go_is_told_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "forget.jsonl", ("1", "Where is A?", "Oslo"), ("1", "Where is D?", "Bonn"))
    with pytest.raises(InputError, match=r"Two different records have the id '1'.*forget.jsonl.*Where is D"):
        read_request(path)


def test_what_goes_may_not_repeat_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "forget.jsonl", *2 * [("", "Where is A?", "Oslo")])
    with pytest.raises(InputError, match="forget holds the same record more than once"):
        read_request(path)


@pytest.mark.parametrize("part", ["retain", "attack"])
def test_what_must_go_is_found_elsewhere_whatever_its_case_and_white_space(
    part: str, forget: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "more.jsonl", ("", "Where is B?", "Rome"), ("other", " where is  A? ", "oslo"))
    with pytest.raises(InputError, match=f"forget and {part} overlap.*forget.jsonl: 1 shared"):
        read_request(forget, **{part: path})  # type: ignore[arg-type]
