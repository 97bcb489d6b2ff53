"""PGD: one push of the residual stream, the same for every question, found on half of the facts.

    h_l  <-  h_l + delta      at every position,      ||delta||_2 <= radius * mean ||h_l||
    delta  <-  P( delta + rate * radius * mean ||h_l|| * g / ||g|| ),      g = dL / d delta,      P onto the ball

L is that of `search`; the mean norm is over the questions' last tokens, whose states, unlike the first token's, are of
the size that the facts are made of. The step does not depend on their number, so a longer search begins with the
shorter one. Attacks of this kind on the latent space: arXiv:2403.05030, arXiv:2402.09063; there delta belongs to one
prompt and can spell out any answer, which one for all cannot. A suppressor that adds a constant is undone by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.base import T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.search import Goal, Groups, Moment, Search
from expunge.attacks.trials import Trial
from expunge.attacks.weights import Weights
from expunge.errors import InputError
from expunge.models.architecture import Architecture, describe
from expunge.models.hooks import RESIDUAL, hooked
from expunge.models.push import ascended
from expunge.models.states import prompt_states
from expunge.unlearning.parametrizations.layers import chosen_blocks

Push = Float[Tensor, " d"]


@dataclass(frozen=True)
class PGD(Search):
    """Projected gradient ascent, for each block and each radius.

    Args:
        split_seed: of the choice of the halves.
        layers: blocks whose output is pushed, one at a time; negative ones count from the end; empty for the one in the
            middle.
        radii: of the ball, as a share of the mean norm of the states.
        steps: of the ascent.
        eval_every: score after every so many steps; divides `steps`.
        rate: length of a step, as a share of the radius.
    """

    layers: tuple[int, ...] = ()
    radii: tuple[float, ...] = (0.3,)
    steps: int = 8
    eval_every: int = 4
    rate: float = 0.25

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = "push the states of a block, the push found on half of the facts, score the other half"

    def __post_init__(self) -> None:
        if not self.radii or not all(0 < radius < float("inf") for radius in self.radii) or not 0 < self.rate <= 1:
            raise InputError(
                "Radii must be above 0 and rate between 0 and 1.",
                f"{self.name}: radii={self.radii}, rate={self.rate}",
            )
        if min(self.steps, self.eval_every) < 1 or self.steps % self.eval_every:
            raise InputError(
                "There must be at least 1 step, and steps must be a multiple of eval_every.",
                f"{self.name}: steps={self.steps}, eval_every={self.eval_every}",
            )

    def count(self, target: Target[T]) -> int:
        """Scored points of all searches."""
        return len(self._blocks(target)) * len(self.radii) * (self.steps // self.eval_every)

    def allowance(self, target: Target[T]) -> Budget:
        """All points, and the passes over the questions that lead to them."""
        searches = len(self._blocks(target)) * len(self.radii)
        queries = searches * self.steps * len(self.material(target).train)
        return Budget(variants=self.count(target), queries=queries)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """The points of one search after the other."""
        arch, facts = describe(target.model), self.material(target).train
        goal = Goal(target.model, target.encoder, facts)
        groups = goal.groups(facts)
        states = prompt_states(target.model, target.encoder, [fact.prompt for fact in facts])
        norms = states.norm(dim=2).mean(1)
        kept, queries = self.kept(target, weights, rate=self.rate), self.eval_every * len(facts)
        for block, radius in product(self._blocks(target), self.radii):
            ball = radius * norms[block].item()
            delta = torch.zeros(states.shape[2], dtype=target.model.dtype, device=target.model.device)
            for step in range(self.eval_every, self.steps + 1, self.eval_every):
                stored = kept.read(moment := f"{block}-{radius!r}-{step}")
                if stored is not None and len(stored.found) == len(delta):
                    delta = delta.new_tensor(stored.found)
                else:
                    for _ in range(self.eval_every):
                        delta = ascended(delta, _slope(goal, groups, arch, block, delta), self.rate * ball, ball)
                    kept.write(moment, Moment(tuple(delta.tolist()), 0.0, queries))
                called = f"block {block}, radius {radius:g}, {step} steps"
                yield Trial(called, partial(pushed, arch, block, delta), spent=Budget(queries=queries))

    def _blocks(self, target: Target[T]) -> tuple[int, ...]:
        arch = describe(target.model)
        return chosen_blocks(arch, self.layers or (len(arch.blocks) // 2,))


def pushed(arch: Architecture, block: int, delta: Push) -> AbstractContextManager[None]:
    """Inside, `delta` is added to what the block gives, at every position."""
    return hooked(arch, {(block, RESIDUAL): lambda states: states + delta})


def _slope(goal: Goal, groups: Groups, arch: Architecture, block: int, delta: Push) -> Push:
    """dL / d delta."""
    free = delta.detach().requires_grad_()
    with pushed(arch, block, free):
        return goal.slope(groups, free)
