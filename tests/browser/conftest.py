"""A headless Chromium, or a skip that says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser with a fresh profile that logs its console and its requests."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and chromedriver on the PATH")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install expunge[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rendered pages by name: one record, two side by side, one with hostile text, and many compared."""

    from expunge.report.html import render
    from synthetic_record import STORIES, make_record, with_evil, with_gold

    folder = tmp_path_factory.mktemp("pages")
    sets = {
        "one": [make_record("graddiff")],
        "two": [make_record("graddiff"), make_record("ssiuu")],
        "three": [make_record(name) for name in ("graddiff", "ssiuu", "npo")],
        "hostile": [with_evil(make_record("graddiff"))],
        "many": [*map(make_record, STORIES), with_gold(make_record("ssiuu"))],
        "hostile_many": [with_evil(make_record(name)) for name in STORIES],
    }
    for name, records in sets.items():
        (folder / f"{name}.html").write_text(render(records), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in sets}
