"""Numbers and untrusted text as words: the same everywhere on the page, on the card and in the charts."""

from __future__ import annotations

import unicodedata

NONE = "–"
SPACE = "\N{NO-BREAK SPACE}"
HIDDEN_KINDS = {"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"}
MAX_MARKS = 3


def visible(text: str, limit: int = 300) -> str:
    """`text` on one line, at most `limit` characters, with everything that would not show or would reorder text named.

    A line feed becomes `\\n`; other controls, bidi overrides, zero-width and private-use characters their code point;
    more than three combining marks in a row are dropped. Escaping for HTML or Markdown is the caller's.
    """
    shown: list[str] = []
    marks = 0
    for char in text[: limit + 1]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if marks <= MAX_MARKS:
            shown.append(_named(char) if kind in HIDDEN_KINDS else char)
    return "".join(shown[:limit]) + ("…" if len(text) > limit else "")


def _named(char: str) -> str:
    """Backslash n or t for the usual ones, `⟨U+202E⟩` for others: signs that every font has."""
    return {"\n": "\\n", "\t": "\\t"}.get(char, f"⟨U+{ord(char):04X}⟩")


def percent(share: float | None) -> str:
    """0.614 as `61 %`."""
    return NONE if share is None else f"{_minus(f'{100 * share:.0f}')}{SPACE}%"


def signed(value: float | None, digits: int = 2) -> str:
    """1.418 as `+1.42`, with a real minus sign; zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else _minus(text)


def fixed(value: float | None) -> str:
    """A share or probability with three decimals, so that columns align."""
    return NONE if value is None else _minus(f"{value:.3f}")


def tick(value: float) -> str:
    """The shortest form of an axis value."""
    return _minus(f"{value:g}")


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, without an exponent between 0.001 and a million."""
    if value is None:
        return NONE
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return _minus(f"{value:.{digits - 1}e}")
    whole = len(f"{abs(value):.0f}")
    text = f"{value:,.{max(0, digits - whole)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"
    return _minus(text.replace(",", SPACE))


def duration(seconds: float | None) -> str:
    """Seconds as `48 s`, `4 min 31 s` or `2 h 05 min`."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60:02d}{SPACE}min"


def size(n: int) -> str:
    """Bytes as MB or GB (powers of ten)."""
    return f"{n / 1e9:.1f}{SPACE}GB" if n >= 1e9 else f"{n / 1e6:.0f}{SPACE}MB"


def count(n: int) -> str:
    """A parameter count as `135 M`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{SPACE}{letter}"
    return str(n)


def plain(name: str) -> str:
    """A label such as `same_subject` in words."""
    return visible(name.replace("_", " ").strip(), 40)


def _minus(text: str) -> str:
    """`text` with the typographic minus; minus zero loses it."""
    return text.lstrip("-") if text.startswith("-") and float(text.replace(SPACE, "")) == 0 else text.replace("-", "−")


def quantity(of: str) -> str:
    """What is attributed, as a reader writes it."""
    return {"log_odds": "log-odds", "log_probability": "log-probability"}.get(of, plain(of))
