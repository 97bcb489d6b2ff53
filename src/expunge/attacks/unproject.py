"""Removal of a projection: take out of the model what keeps it from saying what its weights still know.

    h <- h - (h Q^T) Q     becomes     h <- h              at the blocks of one variant

A projection at the output of a whole block (MRP as its authors wrote it, arXiv:2508.15449, here site "block") stays in
the model as a hook with a file of its own, and whoever has the weights can leave both away. Deleted are all projections
together, those of the first and of the second half of the blocks that have one, and single ones. One that was folded
into weights cannot be deleted but only trained against, which the relearning attacks do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from expunge.attacks.base import T, Target
from expunge.attacks.trials import Trial, Trials
from expunge.attacks.weights import Weights
from expunge.errors import InputError
from expunge.models.projections import attached, lifted


@dataclass(frozen=True)
class Unproject(Trials):
    """Leave projections of whole blocks away.

    Args:
        alone: how many projections are deleted each for itself, the last blocks' first, as what these let through no
            later one takes away.
    """

    alone: int = 8

    name: ClassVar[str] = "unproject"
    summary: ClassVar[str] = "delete the projections that stand at whole blocks, score all forgotten facts"

    def __post_init__(self) -> None:
        if self.alone < 0:
            raise InputError("alone must be at least 0.", f"{self.name}: alone={self.alone}")

    def count(self, target: Target[T]) -> int:
        """Sets of projections; InputError where the model has none, unless it is a control, which loses nothing."""
        return len(self._sets(target))

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each set of projections."""
        for blocks, called in self._sets(target).items():
            yield Trial(called, partial(lifted, target.model, blocks))

    def notes(self, target: Target[T]) -> tuple[str, ...]:
        """Where the projections were, if anywhere."""
        if blocks := sorted(attached(target.model)):
            return (f"Projections stand at the blocks {', '.join(map(str, blocks))}.",)
        return ("This control has no projection to delete, and was scored as it is.",)

    def _sets(self, target: Target[T]) -> dict[tuple[int, ...], str]:
        """What each set of blocks without their projections is called; no set twice."""
        blocks = sorted(attached(target.model))
        if not blocks and target.like is None:
            what = "No projection stands at a block of this model, so nothing can be deleted."
            raise InputError(what, self.name, "Attack it with relearning, which also trains against folded ones.")
        half = len(blocks) // 2
        named = [
            (blocks, f"all {len(blocks)} projections deleted"),
            (blocks[:half], f"the first {half} deleted"),
            (blocks[half:], f"the last {len(blocks) - half} deleted"),
            *(([block], f"that of block {block} deleted") for block in blocks[::-1][: self.alone]),
        ]
        sets: dict[tuple[int, ...], str] = {}
        for chosen, called in named:
            if chosen:
                sets.setdefault(tuple(chosen), called)
        return sets
