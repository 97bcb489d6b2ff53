"""The comparison in a real browser: sorted and filtered by the keyboard, and a plain table without its script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from synthetic_record import STORIES

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

COLUMN = """const [name, table] = arguments;
const at = [...document.querySelectorAll(table + ' thead th')].findIndex(h => h.textContent.trim() === name);
return [...document.querySelectorAll(table + ' tbody tr:not([hidden])')]
  .map(row => row.cells[at].dataset.value ?? row.cells[at].textContent.trim());"""


def column(chrome: Chrome, name: str, table: str = ".compare") -> list[str]:
    """What the shown rows are sorted by, from top to bottom."""
    return list(chrome.execute_script(COLUMN, name, table))


def heads(chrome: Chrome, table: str = ".compare") -> list[str]:
    return list(
        chrome.execute_script(f"return [...document.querySelectorAll('{table} thead th')].map(h => h.innerText.trim())")
    )


def press(chrome: Chrome, key: str) -> None:
    from selenium.webdriver.common.keys import Keys

    chrome.switch_to.active_element.send_keys(getattr(Keys, key, key))


def focused(chrome: Chrome) -> str:
    """Element that has the focus, with the first line of its text."""
    script = "const e = document.activeElement; return e.tagName + ' ' + (e.innerText || '').trim().split(/\\n|\\t/)[0]"
    return str(chrome.execute_script(script)).strip()


def tab_to(chrome: Chrome, wanted: str) -> list[str]:
    """Press Tab from the top of the page until `wanted` has the focus; what had it on the way."""
    chrome.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    passed: list[str] = []
    for _ in range(60):
        chrome.find_element("css selector", "body").send_keys("\ue004") if not passed else press(chrome, "TAB")
        passed.append(focused(chrome))
        if passed[-1] == wanted:
            return passed
    raise AssertionError(f"Tab never reached {wanted!r}, only {passed}")


@pytest.fixture
def page(chromium: Chrome, pages: dict[str, Path]) -> Chrome:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    chromium.get(pages["many"].as_uri())
    return chromium


def test_tab_reaches_the_filter_and_every_sort_button(page: Chrome) -> None:
    last = heads(page)[-1]
    passed = tab_to(page, f"BUTTON {last}")
    assert passed[0].startswith("INPUT") and passed[1].startswith("SELECT")
    assert [name.removeprefix("BUTTON ") for name in passed if name.startswith("BUTTON")] == heads(page)


def test_enter_sorts_and_enter_again_turns_it_round(page: Chrome) -> None:
    tab_to(page, "BUTTON came back (95 %)")
    for way in ("ascending", "descending"):
        press(page, "ENTER")
        values = [float(v) for v in column(page, "came back (95 %)")]
        assert values == sorted(values, reverse=way == "descending") and len(set(values)) > 3
        states = page.execute_script(
            "return [...document.querySelectorAll('.compare th[aria-sort]')].map(h => h.ariaSort)"
        )
        assert states == [way]
    assert focused(page) == "BUTTON came back (95 %)"


def test_every_column_sorts_and_only_one_says_so(page: Chrome) -> None:
    for name in heads(page):
        page.execute_script(
            "[...document.querySelectorAll('.compare button')].find(b => b.innerText.trim() === arguments[0]).click()",
            name,
        )
        values = column(page, name)
        numbers = all(re.fullmatch(r"-?[\d.e+-]+", value) for value in values)
        assert values == (sorted(values, key=float) if numbers else sorted(values, key=str.lower)), name
    assert page.execute_script("return document.querySelectorAll('.compare th[aria-sort]').length") == 1


def test_the_attack_table_sorts_by_size_and_puts_what_is_missing_last(page: Chrome) -> None:
    for _ in range(2):
        page.execute_script(
            "[...document.querySelectorAll('.attacks thead button')].find(b => b.innerText.startsWith('half')).click()"
        )
        values = column(page, "half back after", ".attacks")
        known = [value for value in values if value]
        assert known and values == known + [""] * (len(values) - len(known))
    assert [float(v) for v in known] == sorted(map(float, known), reverse=True)


def test_the_text_filter_leaves_the_runs_that_have_it_everywhere(page: Chrome) -> None:
    tab_to(page, "INPUT")
    for letter in "npo":
        press(page, letter)
    assert column(page, "run") == ["npo"]
    assert set(column(page, "run", ".attacks")) == {"npo"}
    assert page.execute_script("return document.querySelector('[role=status]').textContent") == "1 of 6 runs"
    assert (
        page.execute_script(
            "return [...document.querySelectorAll('figure [data-run]')].map(g => g.getClientRects().length > 0)"
            ".filter(Boolean).length"
        )
        == 2
    )
    for _ in "npo":
        press(page, "BACKSPACE")
    assert len(column(page, "run")) == len(STORIES) + 1


def test_the_verdict_filter_leaves_the_runs_of_that_verdict(page: Chrome) -> None:
    page.execute_script(
        "const s = document.querySelector('#filter select'); s.value = 'ERASED'; s.dispatchEvent(new Event('input'))"
    )
    assert set(column(page, "verdict")) == {"ERASED"} and len(column(page, "verdict")) == 2


def test_a_filter_that_nothing_passes_is_no_error(page: Chrome) -> None:
    tab_to(page, "INPUT")
    for letter in "zzz":
        press(page, letter)
    press(page, "ENTER")
    assert column(page, "run") == []
    assert list(page.get_log("browser")) == []  # type: ignore[no-untyped-call]


def test_without_its_script_the_page_is_a_plain_table(chromium: Chrome, pages: dict[str, Path], tmp_path: Path) -> None:
    text = re.sub(r"<script>.*?</script>", "", pages["many"].read_text(encoding="utf-8"), flags=re.DOTALL)
    bare = tmp_path / "bare.html"
    bare.write_text(text, encoding="utf-8")
    chromium.get(bare.as_uri())
    assert chromium.execute_script("return document.querySelectorAll('button, input:not([hidden] *)').length") == 0
    assert [name.partition(" ")[0] for name in column(chromium, "run")] == [*STORIES, "ssiuu"]
    assert not chromium.find_element("id", "filter").is_displayed()
