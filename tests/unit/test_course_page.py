"""The pictures and rows that courses leave: lines that are named, gold models, one row for one key."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from expunge.bench.course_page import course_caption, draw_courses, draw_kept, write_course_page
from expunge.bench.courses import Courses, course_rows, dump_course_rows
from expunge.continual.record import Course, Moment, Relearnt, SetScore, Setting, Twinned
from expunge.report.theme import LIGHT

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))
KEY = ("benchmark", "method", "after_request", "scored_on")
SETTINGS: tuple[Setting, ...] = ("merged", "frozen")


def score(odds: float) -> SetScore:
    return SetScore(accuracy=0.5, log_odds=odds, chance=0.5, n=10)


def course(names: list[str], gold: bool = False, twins: bool = False) -> Course:
    """Each request falls from 4 to 0 when it is carried out; in gold models from 4 to -1."""

    def at(done: int, low: float) -> Moment:
        odds = {name: low if place < done else 4.0 for place, name in enumerate(names)}
        asked = {name: Twinned(log_odds=odds[name], made_up=0.5, n=10) for name in names} if twins else {}
        sets = {name: score(value) for name, value in {**odds, "retain": 4.0, "held_out": 3.0}.items()}
        return Moment(request=names[done - 1] if done else "", sets=sets, perplexity=2.0, twins=asked)

    start, *after = (at(done, 0.0) for done in range(len(names) + 1))
    left = {name: score(2.0) for name in names}
    return Course(
        stream="s", method="m", recipe={}, seed=1, model="x", start=start, after=tuple(after),
        gold=tuple(at(done, -1.0) for done in range(1, len(names) + 1)) if gold else (),
        relearnt=tuple(
            Relearnt(setting=each, request=names[0], learning_rate=1e-3, step=4, curve=(), sets=left, seconds=1.0)
            for each in SETTINGS
        ),
    )  # fmt: skip


def said(path: Path, courses: Courses) -> list[str]:
    draw_courses(path / "course.svg", courses)
    return re.findall(r"<text[^>]*>([^<]*)</text>", (path / "course.svg").read_text(encoding="utf-8"))


def lines(path: Path, colour: str) -> int:
    """Drawn in that colour, in panels and in the key."""
    drawn = re.findall(r'<path [^>]*style="([^"]*)"', (path / "course.svg").read_text(encoding="utf-8"))
    return sum(f"stroke: {colour}" in style for style in drawn)


def test_few_requests_are_named_where_they_end_and_many_by_a_key(tmp_path: Path) -> None:
    few = ["north_sea", "south", "east"]
    words = said(tmp_path, {"a": [course(few)], "b": [course(few)]})
    assert [words.count(name) for name in ("north sea", "south", "east")] == [2, 2, 2]
    assert not any("first" in word for word in words)
    many = [f"{number:02}" for number in range(1, 11)]
    words = said(tmp_path, {"a": [course(many)], "b": [course(many)]})
    assert "requests, the first (01) to the last (10)" in words
    assert "05" not in words


def test_gold_models_and_made_up_subjects_are_drawn_and_told_where_they_are(tmp_path: Path) -> None:
    plain, known, beside = ({"a": [course(["x", "y"], **has)]} for has in ({}, {"gold": True}, {"twins": True}))
    assert not {"gold model (above: held out)", "made-up subjects"} & set(said(tmp_path, plain))
    assert lines(tmp_path, LIGHT["after"]) == 0
    assert "gold model (above: held out)" in said(tmp_path, known)
    assert lines(tmp_path, LIGHT["after"]) == 2 + 1
    assert "made-up subjects" in said(tmp_path, beside)
    assert "gold" in course_caption(known) and "gold" not in course_caption(beside)
    assert "made-up" in course_caption(beside) and "made-up" not in course_caption(known)


def test_what_stays_has_room_for_every_name(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(20)]
    draw_kept(tmp_path / "kept.svg", {name: [course(["x", "y"])] for name in names})
    text = (tmp_path / "kept.svg").read_text(encoding="utf-8")
    places: dict[str, list[float]] = {}
    for height, word in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]+)</text>', text):
        places.setdefault(word, []).append(float(height))
    named = [places[name][0] for name in names]
    assert max(named) - min(named) < places["requests carried out"][0] - places["retained, accuracy"][0] - 20


def test_one_row_for_every_key(tmp_path: Path) -> None:
    courses = {"a": [course(["x", "y"])], "b": [course(["x", "y"])]}
    files = {path.name: path for path in write_course_page(tmp_path, courses)}
    left, attacked = (json.loads(files[name].read_text("utf-8")) for name in ("table.json", "table_relearnt.json"))
    assert [left, attacked] == list(map(json.loads, dump_course_rows(course_rows(courses))))
    unique(left, KEY, 2 * 3 * 4)
    unique(attacked, (*KEY, "relearnt"), 2 * 2 * 2)
    assert {row["relearnt"] for row in left} == {""}
    assert {row["relearnt"] for row in attacked} == set(SETTINGS)
    assert left[0].keys() == attacked[0].keys()


@pytest.mark.parametrize(("name", "key"), [("continual", KEY), ("continual_relearnt", (*KEY, "relearnt"))])
def test_stored_rows_have_keys_of_their_own(name: str, key: tuple[str, ...]) -> None:
    rows = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    unique(rows, key, len(rows))
    assert {bool(row["relearnt"]) for row in rows} == {"relearnt" in key}


def test_the_page_tells_what_was_not_run_and_what_it_costs() -> None:
    import continual

    asked = continual.grid("people", Path("runs"))
    some = {"graddiff": [course(["x"])] * len(asked.seeds), "npo": [course(["x"])]}
    missing, fewer = continual._not_run(asked, some)
    assert all(f"`{name}`" in missing for name in asked.methods if name not in some)
    assert "graddiff`" not in missing + fewer and "npo` (1)" in fewer
    assert not list(continual._not_run(asked, dict.fromkeys(asked.methods, some["graddiff"])))
    told = "\n".join(continual._costs())
    for name in ("projection", "ten_requests"):
        measured = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
        assert all(f"| {claim['what']} | {claim['value']:.3g} |" in told for claim in measured["claims"])


def unique(rows: list[dict[str, object]], key: tuple[str, ...], n: int) -> None:
    assert len({tuple(row[part] for part in key) for row in rows}) == len(rows) == n > 0
