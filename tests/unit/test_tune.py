"""Tuning: every trial is a run that can be made, and the rule picks whom it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from search import CROSSED, DRAWS, SPACES, choices, drawn  # noqa: E402
from tune import GRIDS, SEED, Trial, best, keep, stored  # noqa: E402


@pytest.mark.parametrize("name", GRIDS)
def test_each_rate_of_each_method_is_a_run(name: str, tmp_path: Path) -> None:
    tuned = GRIDS[name]
    rates, grid = tuned.trials(None, tmp_path)
    cells = list(grid.cells())
    assert len(cells) == len(rates) == len(tuned.factors) * len({method for method, _ in rates.values()})
    for cell, (_, rate) in zip(cells, rates.values(), strict=True):
        assert (cell.recipe.seed, cell.recipe.unlearn["learning_rate"]) == (SEED, rate)
    assert not any(tmp_path.iterdir())


def trial(rate: float, log_odds: float, retain: float = 1.0, held_out: float = 1.0, recovery: float = 0.0) -> Trial:
    return {
        "learning_rate": rate,
        "log_odds": log_odds,
        "retain": retain,
        "held_out": held_out,
        "recovery": recovery,
    }


def test_the_best_trial_forgets_first_and_then_keeps_and_holds() -> None:
    known, hides, wears, good = trial(1, 4.0), trial(2, 0.1, recovery=1.0), trial(3, -0.4, 0.5, 0.5), trial(4, 0.2, 0.9)
    assert best([known, hides, wears, good])["learning_rate"] == 4
    assert best([known, hides, wears])["learning_rate"] == 3
    assert best([known, trial(5, -3.0)])["learning_rate"] == 5, "none at ignorance: the nearest"


@pytest.mark.parametrize("method", SPACES)
def test_each_draw_is_a_run_of_its_own(method: str, tmp_path: Path) -> None:
    drawn_once = drawn(method, DRAWS)
    assert drawn_once == drawn(method, DRAWS), "drawn with a seed"
    recipes = [cell.recipe for cell in GRIDS["world_facts"].grid(choices(method), tmp_path).cells()]
    for recipe, own in zip(recipes, drawn_once, strict=True):
        assert (recipe.method, recipe.seed) == (method, SEED)
        assert {part: getattr(recipe, part) for part in own} == own
    assert len({recipe.to_yaml() for recipe in recipes}) == DRAWS
    bounds = [(part, name, v) for part, space in SPACES[method].items() for name, v in space.items()]
    for part, name, (low, high) in ((part, name, v) for part, name, v in bounds if isinstance(v, tuple)):
        found = sorted(own[part][name] for own in drawn_once)
        assert low <= found[0] < (low * high) ** 0.5 < found[-1] <= high


@pytest.mark.parametrize("method", CROSSED)
def test_every_combination_is_a_run_of_its_own(method: str, tmp_path: Path) -> None:
    recipes = [cell.recipe for cell in GRIDS["world_facts"].grid(choices(method), tmp_path).cells()]
    tried = {tuple(recipe.settings[name] for name in CROSSED[method]) for recipe in recipes}
    assert tried == {(blocks, rank) for blocks in (2, 10, 0) for rank in (1, 4, 16)}
    assert len(recipes) == len(tried)
    assert {(recipe.method, recipe.seed) for recipe in recipes} == {("mrp", SEED)}


def test_trials_made_again_take_the_place_of_their_own_method_alone(tmp_path: Path) -> None:
    file = tmp_path / "trials.json"
    keep(file, [{"method": "a", "n": 1}, {"method": "b", "n": 2}])
    keep(file, [{"method": "a", "n": 3}])
    assert stored(file) == [{"method": "b", "n": 2}, {"method": "a", "n": 3}]
    assert stored(tmp_path / "none.json") == []
