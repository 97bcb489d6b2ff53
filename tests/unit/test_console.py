"""What the terminal is told, whatever its letters."""

from __future__ import annotations

import io
import sys

import pytest

from expunge.console import out, write_any_letters


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(UnicodeEncodeError):
        out.print("Київ")
    write_any_letters()
    out.print("Київ")
    sys.stdout.flush()
    assert b"\\u041a" in raw.getvalue()
