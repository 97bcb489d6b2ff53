"""The report in a real browser: quiet, self-contained, inside the window, legible in both schemes, printable."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
NAMES = ("one", "two", "hostile", "many", "hostile_many")

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text(encoding="utf-8")


def show(chrome: Chrome, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open `page` in a window of `width` CSS pixels."""
    phone = width < 500
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chrome.get(page.as_uri())


def logged(chrome: Chrome, kind: str) -> list[dict[str, Any]]:
    return list(chrome.get_log(kind))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NAMES)
def test_no_word_on_the_console_and_no_request_leaves(chromium: Chrome, pages: dict[str, Path], name: str) -> None:
    logged(chromium, "browser"), logged(chromium, "performance")
    show(chromium, pages[name])
    assert logged(chromium, "browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in logged(chromium, "performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert urls - {"data:,"} == {pages[name].as_uri()}


def test_the_console_and_the_requests_are_really_watched(chromium: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "noisy.html"
    page.write_text('<script>console.error("loud")</script><img src="http://127.0.0.1:9/x.png">', encoding="utf-8")
    logged(chromium, "browser"), logged(chromium, "performance")
    show(chromium, page)
    assert any("loud" in entry["message"] for entry in logged(chromium, "browser"))
    assert any("127.0.0.1:9" in entry["message"] for entry in logged(chromium, "performance"))


@pytest.mark.parametrize("width", [320, 390, 768, 1000, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_never_scrolls_sideways(chromium: Chrome, pages: dict[str, Path], name: str, width: int) -> None:
    show(chromium, pages[name], width)
    for _ in range(2):
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        chromium.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_chart_label_leaves_its_window_or_gets_tiny(chromium: Chrome, pages: dict[str, Path], width: int) -> None:
    show(chromium, pages["two"], width)
    boxes = chromium.execute_script(
        "return [...document.querySelectorAll('figure text')].map(t => { const r = t.getBoundingClientRect();"
        "return [r.left, r.right, r.height, t.textContent]; })"
    )
    assert len(boxes) > 200
    assert not [box for box in boxes if box[0] < 0 or box[1] > width]
    assert min(box[2] for box in boxes) >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["two", "hostile", "many"])
def test_text_is_legible(chromium: Chrome, pages: dict[str, Path], name: str, scheme: str) -> None:
    show(chromium, pages[name], scheme=scheme)
    found = chromium.execute_script(CONTRASTS)
    assert len(found) > 250
    assert not [item for item in found if item[0] < 4.5]


def test_schemes_differ(chromium: Chrome, pages: dict[str, Path]) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        show(chromium, pages["one"], scheme=scheme)
        grounds.append(chromium.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


@pytest.mark.parametrize(("name", "scripts"), [("hostile", 0), ("hostile_many", 1)])
def test_hostile_text_runs_nothing_and_draws_nothing(
    chromium: Chrome, pages: dict[str, Path], name: str, scripts: int
) -> None:
    show(chromium, pages[name])
    assert chromium.execute_script("return document.querySelectorAll('img, [onerror]').length") == 0
    assert chromium.execute_script("return document.scripts.length") == scripts
    assert "<script>alert(1)</script>" in chromium.execute_script("return document.body.innerText")


def test_no_other_script_runs_on_a_page_that_has_one(chromium: Chrome, pages: dict[str, Path], tmp_path: Path) -> None:
    text = (
        pages["many"].read_text(encoding="utf-8").replace("<main>", "<main><script>document.title = 'owned'</script>")
    )
    page = tmp_path / "owned.html"
    page.write_text(text, encoding="utf-8")
    show(chromium, page)
    assert chromium.title != "owned" and any("Security Policy" in e["message"] for e in logged(chromium, "browser"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_in_light_colours_on_a_few_pages(chromium: Chrome, pages: dict[str, Path], scheme: str) -> None:
    show(chromium, pages["two"], scheme=scheme)
    paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True, "preferCSSPageSize": True}
    pdf = base64.b64decode(chromium.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 14
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    ground, ink = chromium.execute_script(style)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert ground == "rgb(255, 255, 255)" and ink == "rgb(28, 33, 38)"


@pytest.mark.parametrize("name", ["one", "two", "three", "many"])
def test_no_table_is_clipped_in_print(chromium: Chrome, pages: dict[str, Path], name: str) -> None:
    """On the 182 mm between the margins of a page of A4, where nothing scrolls."""
    show(chromium, pages[name], width=688)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        wide = chromium.execute_script(
            "return [...document.querySelectorAll('table, td, th, svg')].filter(e => e.getClientRects().length)"
            ".filter(e => e.getBoundingClientRect().right > 689"
            " || (e.tagName !== 'svg' && e.scrollWidth > e.clientWidth + 1))"
            ".map(e => [e.tagName, e.className, e.textContent.trim().slice(0, 60)])"
        )
        assert wide == []
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= 688
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
