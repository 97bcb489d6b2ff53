"""Where a run comes to rest: planted scores along a straight line of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.models.scores import Scores
from expunge.unlearning.landing import TRIES, Landing

TARGET, WITHIN = 0.0, 0.25


def scores(log_odds: float) -> Scores:
    return Scores(0.5, log_odds, 1 / 3, 0.5, 24)


def landing(weight: nn.Parameter, comes_back: bool = False) -> Landing:
    return Landing({"w": weight}, lambda found: found.log_odds, TARGET, WITHIN, comes_back)


@pytest.mark.parametrize(
    ("log_odds", "goes_back", "goes_back_if_it_comes_back"),
    [(-0.2, False, False), (-0.3, True, False), (-0.45, True, False), (-0.55, True, True), (0.3, False, False)],
)
def test_how_far_below_is_too_far(log_odds: float, goes_back: bool, goes_back_if_it_comes_back: bool) -> None:
    for comes_back, expected in ((False, goes_back), (True, goes_back_if_it_comes_back)):
        held = landing(nn.Parameter(torch.zeros(1)), comes_back)
        assert not held.overshot(scores(log_odds)), "there is no place to go back to"
        held.keep()
        assert held.overshot(scores(log_odds)) == expected


@pytest.mark.parametrize(("log_odds", "near"), [(5.0, True), (-0.2, True), (-0.3, False)])
def test_what_is_still_known_is_a_place_to_go_back_to(log_odds: float, near: bool) -> None:
    assert landing(nn.Parameter(torch.zeros(1))).near(scores(log_odds)) == near


@pytest.mark.parametrize("rests_at", [0.1, 0.5, 0.9])
def test_it_comes_to_rest_where_the_score_is_the_one_asked_for(rests_at: float) -> None:
    """The log-odds fall by 100 along the line and pass 0 at `rests_at`: only a 200th of the line is near enough."""
    weight = nn.Parameter(torch.tensor([2.0]))
    held = landing(weight)
    held.keep()
    with torch.no_grad():
        weight.fill_(3.0)
    t, found = held.land(lambda: scores(100 * (rests_at - (weight.item() - 2.0))))
    assert abs(found.log_odds) <= WITHIN and t == pytest.approx(rests_at, abs=WITHIN / 100)
    assert weight.item() == pytest.approx(2.0 + t)


@pytest.mark.parametrize(("level", "end"), [(1.0, 1.0), (-1.0, 0.0)])
def test_where_no_place_will_do_it_stays_next_to_an_end(level: float, end: float) -> None:
    """Always known: it goes on to the end. Never near: it goes back to where it was."""
    weight = nn.Parameter(torch.zeros(1))
    held = landing(weight)
    held.keep()
    with torch.no_grad():
        weight.fill_(1.0)
    t, _ = held.land(lambda: scores(level))
    assert abs(t - end) == 0.5**TRIES


def test_a_resumed_run_goes_back_to_the_same_place() -> None:
    weight = nn.Parameter(torch.tensor([4.0]))
    held, resumed = landing(weight), landing(weight)
    held.keep()
    resumed.load_state(held.state())
    assert resumed.overshot(scores(-9.0))
    with torch.no_grad():
        weight.fill_(8.0)
    resumed.land(lambda: scores(0.0))
    assert weight.item() == 6.0
