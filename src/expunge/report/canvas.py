"""A small figure becomes inline SVG: no fixed colours or fonts, no dates, ids of its own, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from expunge.report.theme import STAND_IN

WIDTH = 266.0  # points: about 11 px text on a 360 px phone, 13 px in two columns on a wide window
FONT = 9.0
SMALL = 8.0
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: it can be selected, found, and set in the page's font
    "svg.hashsalt": "expunge",
    "text.parse_math": False,  # labels may hold untrusted dollars
    "font.size": FONT,
    "axes.edgecolor": STAND_IN["line"],
    "axes.labelcolor": STAND_IN["muted"],
    "axes.labelsize": SMALL,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": STAND_IN["ink"],
    "xtick.color": STAND_IN["muted"],
    "ytick.color": STAND_IN["muted"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "grid.color": STAND_IN["grid"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
NAME_OF = {colour: name for name, colour in STAND_IN.items()}


@contextmanager
def painted(colours: Mapping[str, str]) -> Iterator[None]:
    """Our style in fixed colours, for a picture that stands in no page of ours; `colours` by the theme's names."""
    names = {stand_in: colours.get(name) for name, stand_in in STAND_IN.items()}
    style = {key: names.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    with matplotlib.rc_context():
        matplotlib.rcParams.update({**style, "figure.facecolor": colours["page"], "font.family": "sans-serif"})
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a picture, the same bytes each time."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.15)


@contextmanager
def drawing() -> Iterator[None]:
    """Our style and nothing of the user's; glyphs that the measuring font lacks are the browser's business."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def sheet(height: float, *boxes: tuple[float, float, float, float], width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure and one axes per box (left, bottom, right, top), all in points from the lower left."""
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(figure)
    axes = [
        figure.add_axes((left / width, bottom / height, (right - left) / width, (top - bottom) / height))
        for left, bottom, right, top in boxes
    ]
    return figure, axes


def to_svg(figure: Figure, key: str, label: str) -> Markup:
    """`figure` as an inline SVG element with an accessible name; its ids start with `key`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = buffer.getvalue()
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: _clean(tag[0], key), body)
    body = re.sub(r"<defs>\s*</defs>|(?<=>)\s+(?=<)", "", body)
    width, height = (round(float(inches) * 72, 2) for inches in figure.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    return Markup(head + body[body.index(">") + 1 :])


def _clean(tag: str, key: str) -> str:
    """One tag of matplotlib's SVG, with our colours and ids, without fonts, needless ids and false precision.

    What was drawn with the gid `run-3` belongs to that run, by which the page's filter finds it.
    """
    if tag.startswith("<g "):
        tag = re.sub(r' id="run-(\d+)"', r' data-run="\1"', tag)
        tag = re.sub(r' id="[^"]*"', "", tag)
    for before, after in (('id="', f'id="{key}-'), ("url(#", f"url(#{key}-"), ('xlink:href="#', f'href="#{key}-')):
        tag = tag.replace(before, after)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-0[^"]*"', "", tag)
    tag = re.sub(r"(?<=: )#[0-9a-f]{6}", lambda c: f"var(--{NAME_OF[c[0]]})" if c[0] in NAME_OF else c[0], tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", tag)
    return re.sub(r"\s+", " ", tag)
