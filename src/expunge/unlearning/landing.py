"""Where a run comes to rest: at the forget score asked for, by going back along the last stretch if it went past.

    theta(t) = theta_a + t (theta_b - theta_a),  0 <= t <= 1

a: the weights when the forget items were last scored, and still known; b: the present ones, with a score far below the
target, so that the answers are not unknown but avoided. Bisection finds a t with a score within the tolerance, so that
methods whose steps differ in size stop at the same forget score. The retain side moves along the same line.

Whoever goes back loses what was trained since a. A loss without a way back up loses nothing by that: past the target it
only goes on down. One that comes back up by itself may have hung a little below the target for a third of a run, in
which it has learnt to bear attacks; it stays where it is unless it lies twice as far below as is near enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from expunge.models.scores import Scores

POINTS: Final = 0.03
"""How far from the accuracy asked for is near enough; one item is, too."""

TRIES: Final = 8
"""Bisections at most: 1/256 of a stretch is finer than any tolerance that a score of a few items can bear."""


class Landing:
    """Holds a copy of the trained parameters as they were when the forget items were last scored.

    Args:
        parameters: the trained parameters by name.
        measure: the score of the forget items to go by.
        target: what it is to come to rest at.
        within: how far from it is near enough.
        comes_back: whether the loss raises by itself what fell below the target.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        measure: Callable[[Scores], float],
        target: float,
        within: float,
        comes_back: bool = False,
    ) -> None:
        self._parameters, self._measure, self._target, self._within = parameters, measure, target, within
        self._beyond = within * (2 if comes_back else 1)
        self._kept: dict[str, Tensor] = {}

    def near(self, scores: Scores) -> bool:
        """Whether the items are still known, or as little as was asked for: a place to go back to."""
        return not self._measure(scores) < self._target - self._within

    def keep(self) -> None:
        """Remember the present weights, with which the items were scored."""
        for name, parameter in self._parameters.items():
            if name in self._kept:
                self._kept[name].copy_(parameter.detach())
            else:
                self._kept[name] = parameter.detach().clone()

    def overshot(self, scores: Scores) -> bool:
        """Whether `scores` lie so far below the target that the run should go back."""
        return bool(self._kept) and self._measure(scores) < self._target - self._beyond

    def land(self, score: Callable[[], Scores]) -> tuple[float, Scores]:
        """Go back to where `score` is near enough, or as near as the tries allow; that t and its scores."""
        here = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        low, high, t = 0.0, 1.0, 1.0
        for _ in range(TRIES):
            t = (low + high) / 2
            self._place(here, t)
            scores = score()
            value = self._measure(scores)
            if abs(value - self._target) <= self._within:
                break
            low, high = (t, high) if value > self._target else (low, t)
        return t, scores

    def state(self) -> dict[str, Tensor]:
        """The remembered weights by name."""
        return dict(self._kept)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of another run on the same parameters."""
        self._kept = dict(state)

    @torch.no_grad()
    def _place(self, here: Mapping[str, Tensor], t: float) -> None:
        for name, parameter in self._parameters.items():
            torch.lerp(self._kept[name], here[name], t, out=parameter.data)
