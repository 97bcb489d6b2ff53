"""Ablation of the mean difference: take back what unlearning did to the states of every question alike.

    r_l  =  mean over the forget questions of  h_l(unlearned) - h_l(original)        at the question's last token
    ablate-direction    h_l  <-  h_l - r^ r^T h_l       r^ = r_l / ||r_l||           at every position
    steer-back          h_l  <-  h_l - r_l                                           at every position

h_l is the output of block l, and each block is one trial; the direction is also taken out of all blocks at once, each
block's own (directional ablation, arXiv:2406.11717; against unlearning, arXiv:2409.18025). A suppressor that adds a
constant in block l is undone to the bit of rounding by steering back there, and by ablation but for what the states had
of that direction themselves.

Taking a direction out puts nothing in: what comes back was in the unlearned model's own states. Steering back adds a
constant made with the original, which can carry what the answers have in common, so it is read beside a control only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.base import T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.trials import Trial, Trials
from expunge.attacks.weights import Weights
from expunge.errors import InputError
from expunge.models.architecture import Architecture, describe
from expunge.models.hooks import RESIDUAL, hooked
from expunge.models.states import prompt_states
from expunge.unlearning.parametrizations.layers import chosen_blocks

Shift = Float[Tensor, " d"]
Plan = tuple[str, tuple[int, ...]]
"""A trial in words, and the blocks that are changed in it."""


@dataclass(frozen=True)
class Difference(Trials, ABC):
    """What the mean difference of the states is good for, block by block.

    Args:
        layers: blocks that are tried; negative ones count from the end; empty for all.
    """

    layers: tuple[int, ...] = ()

    uses_original: ClassVar[bool] = True

    @abstractmethod
    def undone(self, states: Tensor, shift: Shift) -> Tensor:
        """States [..., d] without what `shift` did to them."""

    @abstractmethod
    def plans(self, blocks: tuple[int, ...]) -> list[Plan]:
        """One for each trial."""

    def count(self, target: Target[T]) -> int:
        """As many as plans."""
        return len(self._plans(target))

    def allowance(self, target: Target[T]) -> Budget:
        """All trials, and each question read once by both models."""
        return Budget(variants=self.count(target), queries=2 * len(target.request.forget))

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each plan; the first has to pay for reading the questions."""
        plans, shifts, arch = self._plans(target), mean_difference(target), describe(target.model)
        spent = Budget(queries=2 * len(target.request.forget))
        for called, blocks in plans:
            yield Trial(called, partial(self._without, arch, {block: shifts[block] for block in blocks}), spent=spent)
            spent = Budget()

    def _plans(self, target: Target[T]) -> list[Plan]:
        return self.plans(chosen_blocks(describe(target.model), self.layers))

    def _without(self, arch: Architecture, shifts: Mapping[int, Shift]) -> AbstractContextManager[None]:
        return hooked(arch, {(block, RESIDUAL): partial(self.undone, shift=s) for block, s in shifts.items()})


@dataclass(frozen=True)
class AblateDirection(Difference):
    """Project the direction out of one block's states, and out of all blocks' at once.

    Args:
        layers: blocks that are tried; negative ones count from the end; empty for all.
    """

    name: ClassVar[str] = "ablate-direction"
    summary: ClassVar[str] = "take the mean change of the states out of each block, score all forgotten facts"

    def undone(self, states: Tensor, shift: Shift) -> Tensor:
        """`states` without their part along `shift`."""
        return without_direction(states, shift)

    def plans(self, blocks: tuple[int, ...]) -> list[Plan]:
        """Every block, and all together where there are several."""
        each: list[Plan] = [(f"direction taken out of block {block}", (block,)) for block in blocks]
        return [*each, (f"directions taken out of {len(blocks)} blocks", blocks)] if len(blocks) > 1 else each


@dataclass(frozen=True)
class SteerBack(Difference):
    """Subtract the mean difference from one block's states.

    Args:
        layers: blocks that are tried; negative ones count from the end; empty for all.
    """

    name: ClassVar[str] = "steer-back"
    summary: ClassVar[str] = "subtract the mean change of the states from each block, score all forgotten facts"
    control_only: ClassVar[bool] = True

    def undone(self, states: Tensor, shift: Shift) -> Tensor:
        """`states` less `shift`."""
        return states - shift

    def plans(self, blocks: tuple[int, ...]) -> list[Plan]:
        """Every block; what one block adds is in the states of all that follow, so all together would be too much."""
        return [(f"steered back in block {block}", (block,)) for block in blocks]


def mean_difference(target: Target[T]) -> Float[Tensor, "blocks d"]:
    """r of every block, in the model's dtype; the original is in memory meanwhile.

    Raises:
        InputError: the original is not known, or of another architecture.
    """
    prompts = [example.prompt for example in target.request.forget]
    before = prompt_states(target.load_original(), target.encoder, prompts)
    after = prompt_states(target.model, target.encoder, prompts)
    if before.shape != after.shape:
        sizes = " and ".join(f"{len(states)} blocks of width {states.shape[2]}" for states in (before, after))
        raise InputError("The original and the unlearned model are built differently.", sizes, "Give two versions.")
    return (after - before).mean(1).to(target.model.device, target.model.dtype)


def without_direction(states: Float[Tensor, "... d"], direction: Shift) -> Float[Tensor, "... d"]:
    """`states` projected onto what is orthogonal to `direction`; as they are where it is zero."""
    unit = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
    projected: Tensor = states - (states @ unit)[..., None] * unit
    return projected
