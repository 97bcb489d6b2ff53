"""Numbers and untrusted text as words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.report import words

INVISIBLE = {"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"}


@given(st.text(max_size=400))
def test_nothing_invisible_is_left_and_lengths_are_bounded(text: str) -> None:
    shown = words.visible(text, 50)
    assert not {unicodedata.category(c) for c in shown} & INVISIBLE
    assert sum(c == "⟨" for c in shown) <= 50 and len(shown) <= 50 * len("⟨U+10FFFF⟩") + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Paris\n\t", "Paris\\n\\t"),
        ("a\x1b[31mb\x7f", "a⟨U+001B⟩[31mb⟨U+007F⟩"),
        ("abc\u202etxt", "abc⟨U+202E⟩txt"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("e" + "\u0301" * 9, "e" + "\u0301" * 3),
        ("Kõike head, 東京 🙂", "Kõike head, 東京 🙂"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert words.visible(text) == shown


def test_long_text_says_that_it_goes_on() -> None:
    assert words.visible("a" * 300, 10) == "a" * 10 + "…"
    assert words.visible("a" * 10, 10) == "a" * 10


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (words.percent(0.614), "61 %"),
        (words.percent(-0.08), "−8 %"),
        (words.percent(-0.0001), "0 %"),
        (words.percent(None), "–"),
        (words.signed(1.418), "+1.42"),
        (words.signed(-0.4), "−0.40"),
        (words.signed(-0.001), "0.00"),
        (words.fixed(0.0043), "0.004"),
        (words.number(0.0213), "0.0213"),
        (words.number(18.42), "18.4"),
        (words.number(9.996), "10.0"),
        (words.number(1234567), "1.23e+06"),
        (words.number(12345.6), "12 346"),
        (words.number(-2e-5), "−2.00e−05"),
        (words.tick(1e-5), "1e−05"),
        (words.duration(4.06), "4.1 s"),
        (words.duration(48.4), "48 s"),
        (words.duration(271.3), "4 min 31 s"),
        (words.duration(7500), "2 h 05 min"),
        (words.size(3_214_000_000), "3.2 GB"),
        (words.count(134_515_008), "135 M"),
        (words.plain("same_subject"), "same subject"),
    ],
)
def test_numbers(got: str, wanted: str) -> None:
    assert got.replace("\N{NO-BREAK SPACE}", " ") == wanted
