"""Runs side by side: who dominates whom, what is sorted by what, and what the page does not prove."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.report import attack_figures, compare
from expunge.report.canvas import drawing
from expunge.report.figures import labelled
from expunge.report.html import render
from expunge.report.limits import limits
from expunge.report.placing import DOT, Box, place
from expunge.report.record import Record
from expunge.report.view import SIDE_BY_SIDE
from synthetic_record import EVIL, STORIES, bare, make_record, score, with_evil, with_gold


def run(name: str, recovery: float, kept: float) -> Record:
    """A run that lets `recovery` come back and keeps the share `kept` of what was above chance."""
    record = make_record().model_copy(update={"name": name})
    attack = record.attacks[0].model_copy(update={"recovery": recovery})
    before = score(2.2, 48, 0.4).model_copy(update={"accuracy": 1.0})
    after = before.model_copy(update={"accuracy": before.chance + kept * (1 - before.chance)})
    change = record.scores.retain.model_copy(update={"before": before, "after": after})
    scores = record.scores.model_copy(update={"retain": change, "test": change, "groups": {}})
    return record.model_copy(update={"attacks": (attack,), "scores": scores})


@pytest.mark.parametrize(
    ("points", "dominated"),
    [
        ([(0.1, 0.9), (0.2, 0.8)], [False, True]),
        ([(0.1, 0.8), (0.2, 0.9)], [False, False]),
        ([(0.1, 0.9), (0.1, 0.9)], [False, False]),
        ([(0.1, 0.9), (0.1, 0.8), (0.2, 0.9)], [False, True, True]),
        ([(0.3, 0.5), (0.1, 0.4), (0.2, 0.6)], [True, False, False]),
    ],
)
def test_a_run_is_dominated_by_one_that_is_no_worse_in_both_and_better_in_one(
    points: list[tuple[float, float]], dominated: list[bool]
) -> None:
    runs = labelled([run(str(i), *point) for i, point in enumerate(points)])
    assert [one.dominated for one in compare.standings(runs)] == dominated


def test_what_stayed_is_the_share_above_chance_of_the_set_that_had_to_stay_and_lost_most() -> None:
    record, whole = run("a", 0.1, 0.25), make_record().scores.retain
    lost = record.scores.retain

    def among(**sets: object) -> float | None:
        return compare.retention(record.model_copy(update={"scores": record.scores.model_copy(update=sets)}))

    assert compare.retention(record) == among(test=whole) == among(retain=whole) == pytest.approx(0.25)
    assert among(retain=whole, groups={"held_out": lost}) == pytest.approx(0.25)
    assert among(retain=whole, groups={"paraphrase": lost, "same_answer": lost}) == pytest.approx(1.0)
    assert compare.retention(bare(make_record())) is None


def test_a_recovery_that_means_nothing_is_no_number_anywhere() -> None:
    record = make_record()
    unknown = tuple(
        a.model_copy(update={"recovery": 0.0, "recovery_low": None, "recovery_high": None}) for a in record.attacks
    )
    record = record.model_copy(update={"attacks": unknown})
    page = render([record])
    assert "Nothing was known that could come back" in page and "came back under" not in page
    assert ": recovery</figcaption>" not in page and ": what it takes</figcaption>" not in page
    assert compare.standings(labelled([record]))[0].recovery is None
    row = re.search(r'<tr data-run="0"><th scope="row">relearn-harmful</th><td data-value="">(.*?)</td>', page)
    assert row and row[1] == "–"


def test_runs_without_attack_or_kept_facts_are_in_the_table_and_not_in_the_plot() -> None:
    runs = labelled([make_record("graddiff"), bare(make_record("npo")), make_record("ssiuu")])
    standings = compare.standings(runs)
    assert [one.recovery is None for one in standings] == [False, True, False] and not standings[1].dominated
    with drawing():
        (panel,) = attack_figures.pareto_panels(standings)
        assert attack_figures.pareto_panels(standings[:2]) == []
    assert "npo" not in panel.svg and len(compare.comparison(runs).lines) == 3


def test_every_cell_is_sorted_by_its_number_and_what_is_missing_by_nothing() -> None:
    runs = labelled([make_record("graddiff"), bare(make_record("npo"))])
    table = compare.comparison(runs)
    at = table.heads.index("came back (95 %)")
    assert float(table.lines[0].cells[at].value) == pytest.approx(make_record("graddiff").strongest.recovery, rel=1e-4)  # type: ignore[union-attr]
    assert table.lines[1].cells[at].value == ""
    assert all(len(line.cells) == len(table.heads) for line in table.lines)


def test_columns_of_what_all_runs_share_are_left_out() -> None:
    records = [make_record("graddiff"), make_record("ssiuu")]
    other = records[1].model_copy(update={"model": records[1].model.model_copy(update={"name": "another"})})
    assert "model" not in compare.comparison(labelled(records)).heads
    assert "model" in compare.comparison(labelled([records[0], other])).heads
    assert "differ in their models" in render([records[0], other]) and "differ in" not in render(records)


def test_many_runs_make_one_table_and_no_page_of_charts() -> None:
    few, many = ([run(str(i), 0.1 * i, 1 - 0.1 * i) for i in range(n)] for n in (SIDE_BY_SIDE, SIDE_BY_SIDE + 1))
    side, table = render(few), render(many)
    assert side.count('class="card"') == SIDE_BY_SIDE and 'class="card"' not in table
    assert table.count("<figure") == 1 and len(table) < len(side)
    assert len(re.findall(r'<tr data-run="\d+" data-verdict', table)) == SIDE_BY_SIDE + 1
    assert "What this does not prove" in table and "What leaks most" in table


def test_the_comparison_escapes_what_it_sorts_and_filters_by() -> None:
    page = render([with_evil(make_record(name)) for name in STORIES])
    values = re.findall(r'data-[a-z]+="([^"]*)"', page)
    assert values and not any("<" in value for value in values)
    assert page.count("<script>") == 1 and "<img" not in page and EVIL not in page


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 250)), min_size=1, max_size=12))
def test_names_stand_near_their_dots_and_cover_neither_dots_nor_each_other(dots: list[tuple[float, float]]) -> None:
    frame = (500.0, 250.0)
    boxes = place(dots, [(60.0, 9.0)] * len(dots), frame)
    for i, box in enumerate(boxes):
        assert box.left >= 0 and box.right <= frame[0] and box.low >= 0 and box.high <= frame[1]
        assert not any(box.touches(other) for other in boxes[:i])
        assert not any(box.touches(Box(x - DOT, x + DOT, y - DOT, y + DOT)) for x, y in dots)


def test_a_lone_name_stands_right_of_its_dot_and_left_of_it_at_the_edge() -> None:
    right, left = (place([(x, 50.0)], [(60.0, 9.0)], (200.0, 100.0))[0] for x in (50.0, 190.0))
    assert right.left > 50 and right.side == "left" and not right.away
    assert left.right < 190 and left.side == "right" and not left.away


def test_the_limits_are_those_of_the_record() -> None:
    said = " ".join(limits(labelled([make_record()])))
    assert "not tried: prune, prompts" in said and "ignorance is assumed" in said and "with 17 facts" in said
    assert make_record().verdict_details.budget in said and "as paraphrase and multi hop" in said
    gold = " ".join(limits(labelled([with_gold(make_record())])))
    assert "single model that never knew" in gold and "ignorance is assumed" not in gold
    nothing = " ".join(limits(labelled([bare(make_record())])))
    assert "No plain text" in nothing and "Nothing was measured inside" in nothing and "not in other words" in nothing


def test_a_limit_of_some_runs_names_them_and_one_of_all_is_said_once() -> None:
    found = limits(labelled([make_record("graddiff"), with_gold(make_record("ssiuu"))]))
    assert sum("differential privacy" in line for line in found) == 1
    assert any(line.startswith("ssiuu: The control is") for line in found)
    assert any(line.startswith("graddiff: No model that never knew") for line in found)


def test_few_seeds_and_a_best_moment_at_the_end_are_told() -> None:
    record = make_record()
    one = record.attacks[0].model_copy(update={"curve": tuple(p for p in record.attacks[0].curve if p.seed == 0)})
    last = max(one.curve, key=lambda p: p.step)
    rising = record.model_copy(update={"attacks": (one.model_copy(update={"best": last}),)})
    said = " ".join(limits(labelled([rising])))
    assert "attacked with 1 seed." in said and "last step of relearn-harmful" in said
