"""Charts: themed, labelled, comparable, and the same each time."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.report import attack_figures, charts, compare, figures, grammar, theme
from expunge.report.canvas import drawing, to_svg
from expunge.report.figures import Panel, labelled
from synthetic_record import make_record, with_gold


def all_panels(*names: str) -> list[Panel]:
    runs = labelled([make_record(name) for name in names])
    makers = (
        attack_figures.recovery_panels,
        attack_figures.budget_panels,
        attack_figures.sweep_panels,
        figures.level_panels,
        figures.curve_panels,
        figures.influence_panels,
        figures.map_panels,
        figures.probe_panels,
        figures.lens_panels,
        figures.group_panels,
    )
    with drawing():
        pareto = attack_figures.pareto_panels(compare.standings(runs))
        return [panel for make in makers for panel in make(runs)] + pareto


@pytest.fixture(scope="module")
def panels() -> list[Panel]:
    return all_panels("graddiff", "ssiuu")


def test_every_colour_follows_the_scheme(panels: list[Panel]) -> None:
    for panel in panels:
        assert not re.findall(r": ?#[0-9a-fA-F]{3,6}|rgb\(", panel.svg), panel.title
        assert set(re.findall(r"var\(--([\w]+)\)", panel.svg)) <= set(theme.NAMES)


def test_every_chart_has_an_accessible_name_with_numbers(panels: list[Panel]) -> None:
    for panel in panels:
        name = re.match(r'<svg role="img" aria-label="([^"]+)"', panel.svg)
        assert name and re.search(r"\d", name[1]), panel.title


def test_text_stays_text_and_no_date_or_font_is_left(panels: list[Panel]) -> None:
    for panel in panels:
        assert "<text" in panel.svg
        assert not re.search(r"<metadata|dc:date|font-family|<style|<!--|width=\"[\d.]+pt", panel.svg)


def first_bar(panel: Panel) -> str:
    found = re.search(r'<path d="([^"]+)"[^>]*fill: var\(--before\)', panel.svg)
    assert found
    return found[1]


def test_runs_share_their_axes(panels: list[Panel]) -> None:
    """Both runs start from the same log-odds, so both first bars must be the same shape, whatever the attacks reach."""
    bars = [first_bar(p) for p in panels if p.title.endswith(": log-odds") and "var(--attack)" in p.svg]
    assert len(bars) == 2 and bars[0] == bars[1]


@pytest.mark.parametrize("stretched", [0, 1])
def test_each_run_stretches_the_axes_of_all(stretched: int) -> None:
    records = [make_record("graddiff"), make_record("ssiuu")]
    attack = records[stretched].attacks[0].model_copy(update={"log_odds": 9.0})
    beyond = list(records)
    beyond[stretched] = records[stretched].model_copy(update={"attacks": (attack,)})
    with drawing():
        narrow, wide = (figures.level_panels(labelled(each))[1 - stretched] for each in (records, beyond))
    assert first_bar(narrow) != first_bar(wide)


@pytest.mark.parametrize("largest", [0, 1])
def test_maps_share_one_scale(largest: int) -> None:
    records = [make_record("graddiff"), make_record("ssiuu")]
    influence = records[largest].influence
    assert influence
    grid = tuple(tuple(100 * value for value in row) for row in influence.map_minus)
    scaled = influence.model_copy(update={"map_minus": grid})
    records[largest] = records[largest].model_copy(update={"influence": scaled})
    with drawing():
        panels = figures.map_panels(labelled(records))
    reached = [f"var(--heat{theme.LEVELS - 1})" in panel.svg for panel in panels]
    assert [i for i, top in enumerate(reached) if top] == [2 * largest + 1]


def test_maps_are_of_the_log_odds_where_any_run_is_too_certain_for_the_probability() -> None:
    """Both runs change over, since their maps share a scale."""
    records = [make_record("graddiff"), make_record("ssiuu")]
    assert figures.map_quantity(labelled(records)) == "probability"
    assert records[1].influence
    certain = records[1].influence.model_copy(update={"saturated_share": 0.9})
    blind = [records[0], records[1].model_copy(update={"influence": certain})]
    assert figures.map_quantity(labelled(blind)) == "log-odds"
    assert figures.map_top(labelled(blind)) == pytest.approx(5 * figures.map_top(labelled(records)))
    assert blind[0].telling_influence is blind[0].influence
    assert blind[1].telling_influence is blind[1].influence_log_odds


def test_labels_cannot_open_markup_or_mathematics() -> None:
    name = '<b>"$x_1$" 東京 -->'
    bars = [charts.Bar(name, "after", 0.5, 0.1, 0.9, 0.0)]
    with drawing():
        svg = to_svg(charts.levels(bars, (0, 1), 0.0, "ignorance", str), "k", name)
    assert "<b>" not in svg and '>&lt;b&gt;"$x_1$" 東京 --&gt;</text>' in svg
    assert 'aria-label="&lt;b&gt;&#34;$x_1$&#34; 東京' in svg


@given(st.lists(st.floats(0, 100), min_size=1, max_size=7))
def test_names_are_spread_in_order_without_touching(heights: list[float]) -> None:
    moved = grammar.spread(heights, gap=9, top=100)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    assert all(moved[b] - moved[a] >= 9 - 1e-9 for a, b in pairwise(order))
    assert max(moved) <= 100 + 1e-9


def test_names_with_room_stay_where_they_are() -> None:
    assert grammar.spread([50, 10, 90], gap=9, top=100) == pytest.approx([50, 10, 90])
    assert grammar.spread([50, 50], gap=10, top=100) == pytest.approx([45, 55])


@given(st.lists(st.floats(-5, 5), max_size=9))
def test_limits_hold_all_values_and_zero(values: list[float]) -> None:
    low, high = grammar.padded(values)
    assert low <= min([0, *values]) and max([0, *values]) <= high and low < high


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "muted", "before", "after", "attack"])
def test_text_colours_are_legible(scheme: dict[str, str], text: str) -> None:
    assert min(contrast(scheme[text], scheme[ground]) for ground in ("page", "surface")) >= 4.5
    assert contrast(scheme["ink"], scheme["mark"]) >= 4.5


@pytest.mark.parametrize("ramp", [theme.HEAT_LIGHT, theme.HEAT_DARK], ids=["light", "dark"])
def test_the_ramp_is_ordered_by_lightness_alone(ramp: tuple[str, ...]) -> None:
    steps = [luminance(colour) for colour in ramp]
    assert steps in (sorted(steps), sorted(steps, reverse=True)) and len(set(steps)) == theme.LEVELS


def test_the_control_is_a_diamond_where_it_was_measured_and_the_dashed_line_where_it_was_assumed() -> None:
    record = make_record()
    with drawing():
        assumed, measured = (figures.level_panels(labelled([r])) for r in (record, with_gold(record)))
        climbs = figures.curve_panels(labelled([with_gold(record)]))[1].svg
    diamonds = [p.svg.count("fill: var(--surface); stroke: var(--ink)") for p in (*assumed, *measured)]
    assert diamonds[:2] == [0, 0] and diamonds[2] == diamonds[3] >= len(record.attacks)
    assert ">control<" in climbs
