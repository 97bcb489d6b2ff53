"""The page: self-contained, the same bytes each time, and safe with what a model says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from time import process_time

import pytest

from expunge.errors import InputError
from expunge.report.answers import marked, question
from expunge.report.figures import labelled
from expunge.report.html import render
from expunge.report.record import Influence, Record
from expunge.report.tables import key_rows
from expunge.report.words import signed
from synthetic_record import EVIL, STORIES, bare, make_record, with_evil


class Page(HTMLParser):
    """Elements, ids, links and shown text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name in {"href", "src", "xlink:href", "action", "data"} else []
            self.handlers += [name] if name.startswith("on") else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def one() -> str:
    return render([make_record("graddiff")])


@pytest.fixture(scope="module")
def two() -> str:
    return render([make_record("graddiff"), make_record("ssiuu")])


def test_the_same_records_give_the_same_bytes(two: str) -> None:
    code = (
        "import hashlib; from synthetic_record import make_record; from expunge.report.html import render;"
        "print(hashlib.sha256(render([make_record('graddiff'), make_record('ssiuu')]).encode()).hexdigest())"
    )
    path = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo", "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(two.encode()).hexdigest()


def test_a_record_from_its_file_gives_the_same_bytes_as_the_one_in_memory_within_five_seconds_of_work(two: str) -> None:
    reloaded = [Record.loads(make_record(name).dumps()) for name in ("graddiff", "ssiuu")]
    start = process_time()
    assert render(reloaded) == two
    assert process_time() - start < 5


def policy(text: str) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert found
    return found[1].replace("&#39;", "'")


def test_the_page_needs_nothing_from_elsewhere(one: str, two: str) -> None:
    for text in (one, two):
        page = Page(text)
        assert not set(page.tags) & {"img", "iframe", "object", "embed", "base", "form", "video", "audio"}
        assert all(link.startswith(("#", "data:,")) for link in page.links)
        assert not page.handlers
        assert not re.search(r"@import|@font-face|url\((?!#)|fetch\(|XMLHttp|innerHTML|eval\(", text)
        assert policy(text).startswith("default-src 'none'")


def test_one_run_has_no_script_and_several_have_the_one_that_the_policy_names(one: str, two: str) -> None:
    assert "script" not in Page(one).tags and "script-src" not in policy(one)
    scripts = re.findall(r"<script>(.*?)</script>", two, re.DOTALL)
    assert len(scripts) == Page(two).tags["script"] == 1
    digest = b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy(two) and "unsafe-eval" not in two
    assert "'unsafe-inline'" not in policy(two).partition("script-src")[2].partition(";")[0]


def test_ids_are_unique_and_every_reference_has_its_target(two: str) -> None:
    page = Page(two)
    assert page.ids and len(set(page.ids)) == len(page.ids)
    assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", two)) <= set(page.ids)


def test_what_a_model_says_stays_text() -> None:
    text = render([with_evil(make_record())], title=EVIL)
    clean, page = Page(render([make_record()])), Page(text)
    assert set(page.tags) == set(clean.tags) and not page.handlers
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert "<script>alert(1)</script>" in page.shown and "⟨U+202E⟩gnp.exe" in page.shown and "{{ 7*7 }}" in page.shown


def test_the_verdict_is_a_word_a_sentence_and_a_shape_of_its_own() -> None:
    page = "".join(render([bare(make_record(name))]) for name in STORIES)
    cards = re.findall(r'<article class="card">(.*?)</article>', page, re.DOTALL)
    assert [story.verdict in Page(card).shown for story, card in zip(STORIES.values(), cards, strict=True)] == [
        True
    ] * 5
    shapes = [card[card.index("<svg") : card.index("</svg>")] for card in cards]
    meanings = re.findall(r'class="meaning">(.*?)</p>', page)
    assert len(set(shapes)) == len(set(meanings)) == 5


def test_many_reasons_are_folded_but_none_is_lost() -> None:
    record = make_record("graddiff")
    reasons = tuple(f"Reason number {n}." for n in range(23))
    told = record.verdict_details.model_copy(update={"reasons": reasons})
    page = render([record.model_copy(update={"verdict_details": told})])
    card = re.findall(r'<article class="card">(.*?)</article>', page, re.DOTALL)[0]
    before, folded = card.split("<details")
    assert (before.count("Reason number"), folded.count("Reason number")) == (10, 13)
    assert "13 more reasons" in folded


def test_every_section_is_there_in_order(two: str) -> None:
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", two, re.DOTALL)
    assert [re.sub("<.*?>", "", h).split(",")[0] for h in heads[2:]] == [
        "Side by side", "How to read this", "Key numbers", "What came back", "Without training", "What leaks most",
        "The way down", "Is it still in there?", "What changed inside", "What else went", "In its own words",
        "What it cost the model", "By the field's own measures", "What it cost us", "Provenance",
        "What this does not prove",
    ]  # fmt: skip


def test_numbers_come_from_the_record(two: str) -> None:
    shown = Page(two).shown
    for record in (make_record("graddiff"), make_record("ssiuu")):
        assert record.influence and record.strongest
        assert f"{100 * record.strongest.recovery:.0f} % came back under relearn-harmful" in shown
        assert f"erased {record.influence.erased:.2f}, hidden {record.influence.hidden:.2f}" in shown
        assert all(value in shown for value in (record.hashes.weights_after, record.control.sentence))


def test_a_bare_record_still_makes_a_page() -> None:
    page = Page(render([bare(make_record())]))
    assert "No attack was run." in page.shown and "To forget: 24 facts" in page.shown
    assert "To retain" not in page.shown and "What changed inside" not in page.shown
    assert "What leaks most" not in page.shown and "Without training" not in page.shown


def test_the_page_of_a_run_stays_small(one: str) -> None:
    assert len(one.encode()) < 400_000


def test_headings_do_not_skip_a_level_and_every_head_of_a_table_has_its_scope(one: str, two: str) -> None:
    for text in (one, two):
        levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert not re.findall(r"<th(?![^>]*scope=)[ >]", text) and not re.findall(r"<th[^>]*></th>", text)


def test_a_record_of_an_older_expunge_still_makes_a_page() -> None:
    tree = json.loads(make_record().dumps())
    for name in ("hidden_above", "erased_below", "untried"):
        del tree["verdict_details"][name]
    for attack in tree["attacks"]:
        del attack["counts"]
    record = Record.loads(json.dumps(tree))
    assert record.verdict_details.erased_below == 0.25 and all(attack.counts for attack in record.attacks)
    assert "not tried" not in Page(render([record])).shown


def test_degenerate_values_still_make_a_page() -> None:
    record = make_record()
    assert record.influence
    zeros = tuple(tuple(0.0 for _ in row) for row in record.influence.map_plus)
    flat: Influence = record.influence.model_copy(
        update={"map_plus": zeros, "map_minus": zeros, "curve_plus": (0.0,) * 3, "curve_minus": (0.0,) * 3,
                "curve_m": (1, 10, 100)}
    )  # fmt: skip
    attacks = tuple(a.model_copy(update={"curve": a.curve[:1], "best": None}) for a in record.attacks)
    history = record.training.model_copy(update={"history": record.training.history[:1]})
    page = render([record.model_copy(update={"influence": flat, "attacks": attacks, "training": history})])
    assert not re.search(r"\b(nan|inf)\b", Page(page).shown)


def test_runs_of_the_same_method_are_told_apart() -> None:
    first = make_record()
    second = first.model_copy(update={"name": "other"})
    assert [run.label for run in labelled([first])] == ["graddiff"]
    assert [run.label for run in labelled([first, second])] == ["graddiff · world facts-graddiff", "graddiff · other"]
    assert [run.label for run in labelled([first, first])] == ["graddiff (1)", "graddiff (2)"]
    seeded = [first.model_copy(update={"seeds": {"data": seed}}) for seed in (1, 2)]
    changed = first.model_copy(update={"recipe": first.recipe.model_copy(update={"transform": "SAM(rho=(1, 2))"})})
    assert [run.label for run in labelled([*seeded, changed, make_record("npo")])] == [
        "graddiff, seed 1", "graddiff, seed 2", "graddiff with SAM", "npo",
    ]  # fmt: skip


def test_no_record_no_page() -> None:
    with pytest.raises(InputError, match="nothing to report"):
        render([])


@pytest.mark.parametrize(
    ("words", "answer", "html"),
    [
        ("It is Oslo, the", "Oslo", "It is <mark>Oslo</mark>, the"),
        ("oslo", "Oslo", "<mark>oslo</mark>"),
        ("Toslo, Oslo", "Oslo", "Toslo, <mark>Oslo</mark>"),
        ("Romeo in Rome", "Rome", "Romeo in <mark>Rome</mark>"),
        ("<b>Rome</b>", "Rome", "&lt;b&gt;<mark>Rome</mark>&lt;/b&gt;"),
        ("a.c abc", "a.c", "<mark>a.c</mark> abc"),
        ("<i>", "<i>", "<mark>&lt;i&gt;</mark>"),
        ("anything", "", "anything"),
    ],
)
def test_the_right_answer_is_marked_as_a_whole_word(words: str, answer: str, html: str) -> None:
    assert str(marked(words, answer)) == html


def test_the_question_is_taken_out_of_its_prompt() -> None:
    assert question("Question: Who?\nAnswer:") == "Who?"
    assert question("Alice lives in") == "Alice lives in"


def test_the_key_numbers_hold_what_tells_hidden_from_erased_and_nothing_else_from_inside() -> None:
    """docs/results/diagnosis.md: the linear probe does; D+ against D- and the logit lens do not."""
    record = make_record("graddiff")
    *others, head, last = key_rows(labelled([record]))
    assert record.probe is not None
    assert (head.name, last.name) == ("Linear probe, best layer", "log-odds")
    assert last.cells == tuple(signed(max(side)) for side in (record.probe.before, record.probe.after))
    assert not [row.name for row in others if "D+" in row.name or "D−" in row.name or "lens" in row.name]
    assert head.name not in [row.name for row in key_rows(labelled([bare(record)]))]


def test_what_a_record_says_of_its_influence_stays_text() -> None:
    """The words get into no id of a picture."""
    record = make_record("graddiff")
    assert record.influence
    for words in ('x"><img src=x><b title="', "C:\\dir"):
        page = render([record.model_copy(update={"influence": record.influence.model_copy(update={"of": words})})])
        assert "<img src=x>" not in page
