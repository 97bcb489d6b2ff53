"""Influence: the formulas on hand numbers, the curves and maps, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audit.attribution import Attribution
from expunge.audit.influence import GRID, cells, compare, cumulative, rho
from expunge.audit.layout import Layout
from expunge.errors import InputError

LAYOUT = Layout.of_sizes(iter([("q", 0, 2), ("down", 0, 1), ("q", 1, 2), ("down", 1, 1)]))


def attribution(
    positive: list[list[float]], negative: list[list[float]], probability: list[float], layout: Layout = LAYOUT
) -> Attribution:
    return Attribution(
        ids=tuple(f"e{i}" for i in range(len(positive))),
        of="log_probability",
        largest=np.array(positive, dtype=np.float32),
        smallest=np.array(negative, dtype=np.float32),
        log_probability=np.log(np.array(probability)),
        layout=layout,
    )


def test_hand_numbers() -> None:
    """Neurons: lost; lost and pushed below zero (inner max); gained (outer clamp); a new suppressor; a freed one."""
    before = attribution(
        [[4, 4, 1, 0, 0, 0], [2, 2, 1, 0, 0, 0]], [[0, 0, 0, -1, -3, 0], [0, 0, 0, -1, -3, 0]], [0.5, 0.5]
    )
    after = attribution(
        [[1, -9, 3, 0, 0, 0], [1, -9, 3, 0, 0, 0]], [[0, 0, 0, -6, -1, 0], [0, 0, 0, -2, -1, 0]], [0.4, 0.001]
    )
    found = compare(before, after, top=1)
    np.testing.assert_allclose(found.d_plus, [2, 3, 0, 0, 0, 0])
    np.testing.assert_allclose(found.d_minus, [0, 0, 0, 3, 0, 0])
    assert (found.erased, found.hidden) == (3, 3)
    assert found.modules == ("q", "down")
    assert found.map_plus == ((3, 0), (0, 0))
    assert found.map_minus == ((0, 3), (0, 0))
    assert compare(before, after, top=2).erased == 5
    assert compare(before, after, top=2).map_plus == ((2.5, 0), (0, 0))
    assert (found.saturated_before, found.saturated_after, found.saturated_share) == (0, 0.5, 0.5)


def test_one_example_pushed_up_does_not_cancel_another_pushed_down_only_after_the_mean() -> None:
    """The outer clamp is on the mean, the inner one on each example: swapping them would give other numbers."""
    before = attribution([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], [[0] * 6, [0] * 6], [0.5, 0.5])
    after = attribution([[-5, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]], [[0] * 6, [0] * 6], [0.5, 0.5])
    assert compare(before, after).d_plus[0] == 0  # (1 - 0 + 1 - 3) / 2 = -0.5, not (6 - 2) / 2


def test_grid_reaches_from_one_to_a_thousand_over_a_hundred() -> None:
    assert GRID[0] == 1 and GRID[-1] == 1000 and 100 in GRID
    assert list(GRID) == sorted(set(GRID))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=400))
def test_curves_rise_ever_more_slowly_to_the_whole_sum(values: list[float]) -> None:
    array = np.array(values)
    curve = np.array(cumulative(array, tuple(range(1, 501))))
    steps = np.diff(curve)
    assert (steps >= -1e-9).all()
    assert (np.diff(steps) <= 1e-6).all()
    assert curve[0] == array.max()
    assert curve[-1] == pytest.approx(array.sum())


def test_cells_take_the_top_of_each_map_only() -> None:
    values = np.array([1.0, 5.0, 7.0, 2.0, 4.0, 0.0])
    assert cells(values, LAYOUT, top=1) == ((5, 4), (7, 0))
    assert cells(values, LAYOUT, top=100) == ((3, 3), (7, 0))


def test_rho_is_one_for_a_scaled_copy_and_undefined_for_a_constant() -> None:
    a = attribution([[1, 2, 3, 4, 5, 6]], [[-1, 0, -2, 0, 0, -4]], [0.5])
    double = replace(a, largest=2 * a.largest, smallest=2 * a.smallest)
    flipped = replace(a, largest=-a.largest, smallest=-a.smallest)
    nothing = replace(a, largest=0 * a.largest, smallest=0 * a.smallest)
    assert rho(a, double) == pytest.approx(1)
    assert rho(a, flipped) == pytest.approx(-1)
    assert rho(a, nothing) is None
    other = attribution([[2, 1, 0, 5, 5, 5]], [[0, 0, -2, -1, 0, -4]], [0.5])
    x, y = (np.concatenate([v.positive[0], v.negative[0]]) for v in (a, other))
    assert rho(a, other) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_json_is_small_and_complete() -> None:
    rng = np.random.default_rng(0)
    layout = Layout.of_sizes((m, layer, 64) for layer in range(30) for m in ("q", "k", "v", "o", "gate", "up", "down"))
    first, second = (rng.normal(size=(2, 1, layout.neurons)) for _ in range(2))
    a, b = (attribution(np.abs(v[0]).tolist(), (-np.abs(v[1])).tolist(), [0.5], layout) for v in (first, second))
    found = compare(a, b)
    text = json.dumps(found.to_json())
    assert len(text) < 10_000
    back = json.loads(text)
    assert back["erased"] == pytest.approx(found.erased, rel=1e-5)
    assert back["curve_plus"][back["curve_m"].index(100)] == back["erased"]
    assert np.array(back["map_minus"]).shape == (7, 30)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"of": "log_odds"}, "quantities"),
        ({"ids": ("other",)}, "examples"),
        ({"layout": Layout.of_sizes(iter([("q", 0, 6)]))}, "architectures"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, object], word: str) -> None:
    a = attribution([[1, 2, 3, 4, 5, 6]], [[0] * 6], [0.5])
    for measure in (compare, rho):
        with pytest.raises(InputError, match=word):
            measure(a, replace(a, **change))
