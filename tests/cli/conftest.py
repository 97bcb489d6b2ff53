"""Fixtures of the command line: it in this process, and checkpoints to audit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audits import Expunge, facts, save, teach, write
from expunge import cli
from expunge.data.example import Example
from expunge.report import html
from tiny import make_tiny_model


@pytest.fixture
def expunge(monkeypatch: pytest.MonkeyPatch) -> Expunge:
    """Run the command line in this process and return its exit code."""

    def run(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        return int(leaving.value.code or 0)

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`taught` knows the facts; `fresh` and `other` never saw them; `files` are beside them."""
    at = tmp_path_factory.mktemp("checkpoints")
    save(at / "taught", teach(make_tiny_model(), facts()))
    save(at / "fresh", make_tiny_model())
    save(at / "other", make_tiny_model(seed=1))
    write(at / "forget.jsonl", facts())
    write(at / "retain.jsonl", [Example(f"w{i}", f"w{i + 1}", (f"w{i + 2}", f"w{i + 3}")) for i in range(4)])
    write(at / "attack.jsonl", [Example(f"where does w{i} live ?", "oslo", ("lima", "rome")) for i in range(10, 14)])
    return at


@pytest.fixture
def at(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with links to the checkpoints and files, from which commands are run."""
    for path in checkpoints.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page is drawn: that takes longer than all else."""
    monkeypatch.setattr(html, "render", lambda records: f"the page of {len(records)}")
