"""Files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.example import Example
from expunge.errors import InputError
from expunge.folder import RunFolder, read_json, write_json
from expunge.request import Request


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


SOURCE = {"model": None, "control": None, "hashes": {"config.json": "ab"}}
TRAINING = {
    "arguments": {},
    "hashes": {},
    "history": [],
    "peak_bytes": 0,
    "stage_seconds": 0.0,
    "steps": 0,
    "stop_reason": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """What the stages after unlearning read first."""
    folder = RunFolder(tmp_path / "run")
    Request((Example("q", "a"),)).save(folder.request)
    write_json(folder.source, SOURCE)
    write_json(folder.training, TRAINING)
    return folder


@pytest.mark.parametrize(
    ("name", "lacks"), [("training.json", "arguments, hashes, history"), ("source.json", "control, hashes")]
)
def test_a_file_of_a_run_that_lacks_something_is_told(name: str, lacks: str, folder: RunFolder) -> None:
    write_json(folder.path / name, {})
    with pytest.raises(InputError, match=f"it lacks {lacks}") as told:
        folder.load_subject()
    assert told.value.where.endswith(name)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("training.json", "arguments", [3]),
        ("training.json", "hashes", 3),
        ("training.json", "hashes", {"config.json": 3}),
        ("training.json", "history", [3]),
        ("training.json", "stage_seconds", "long"),
        ("training.json", "steps", None),
        ("source.json", "hashes", []),
        ("source.json", "model", 3),
    ],
)
def test_a_file_of_a_run_with_something_of_another_kind_is_told(
    name: str, key: str, value: object, folder: RunFolder
) -> None:
    write_json(folder.path / name, read_json(folder.path / name) | {key: value})
    with pytest.raises(InputError, match=f"A file of the run cannot be used: it is damaged at {key}") as told:
        folder.load_subject()
    assert told.value.where.endswith(name)


def test_two_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").working():
        with pytest.raises(InputError, match="at work in this folder"), RunFolder(tmp_path / "run").working():
            pass
        with RunFolder(tmp_path / "other").working():
            pass
    with RunFolder(tmp_path / "run").working():
        assert not (tmp_path / "run").exists()
