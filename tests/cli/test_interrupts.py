"""Ctrl-C while torch is imported, which swallows it, ends every command as it does anywhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "unlearn --model m --forget f --retain r -o run",
    "attack run",
    "audit m",
    "run recipe.yaml",
    "report run",
    "verify run",
    "demo --tiny",
    "list methods",
    "list attacks",
    "list suites",
    "request add --forget f",
    "request apply m",
    "request verify m",
)

PROGRAM = """
import signal, sys
from importlib.abc import MetaPathFinder

class Interrupted(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("torch", "numpy"):
            return None
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise ImportError(f"half of {name}")

signal.signal(signal.SIGINT, getattr(signal, sys.argv.pop(1)))
sys.meta_path.insert(0, Interrupted())
from expunge.cli import main
main()
"""
"""The command line, with a torch that is interrupted in its import and makes something else of that."""


def run(handler: str, command: str, at: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM, handler, *command.split()]
    return subprocess.run(words, cwd=at, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_during_imports_is_told_as_one(command: str, tmp_path: Path) -> None:
    left = run("default_int_handler", command, tmp_path)
    assert (left.returncode, left.stderr.splitlines()[0]) == (130, "error: Interrupted.")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_is_ignored_stays_so(tmp_path: Path) -> None:
    left = run("SIG_IGN", "report run", tmp_path)
    assert (left.returncode, left.stderr.splitlines()[0]) == (2, "error: ImportError: half of torch")
