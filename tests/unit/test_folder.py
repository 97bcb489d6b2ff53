"""Files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.errors import InputError
from expunge.folder import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, None]})
    assert read_json(tmp_path / "a" / "b.json") == {"x": [1, None]}


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "it is not there"), (b"\xff", "it is not UTF-8 text"), (b"{", "it is damaged"), (b"[]", "it is damaged")],
)
def test_a_file_that_is_of_no_use_is_told_in_words(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as told:
        read_json(path)
    assert (told.value.what, told.value.where) == (f"A file of the run cannot be used: {why}.", str(path))
