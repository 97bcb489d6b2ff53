"""The rows of a step, cut into micro-batches and dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from expunge.data.collate import Batch, Encoded, collate
from expunge.data.order import PairedOrder
from expunge.unlearning.objectives.base import Totals
from expunge.unlearning.processes import Processes


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward; `weight` is 1, or 0 for rows that are only there to keep the processes in step."""

    forget: Batch
    retain: Batch | None
    weight: float


@dataclass(frozen=True, slots=True)
class StepBatches:
    """What every step trains on.

    Args:
        forget: encoded forget items.
        retain: encoded retain items; empty for an objective that uses none.
        order: which of them meet in which step.
        per_forward: forget items per forward at most.
        pad_id: what rows are padded with.
        processes: who shares the step.
        device: where the rows go.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    order: PairedOrder
    per_forward: int
    pad_id: int
    processes: Processes
    device: torch.device

    def totals(self, step: int) -> Totals:
        """The counts of the whole step."""
        forget, retain = self.order.at(step)
        return Totals(_tokens(self.forget, forget), len(forget), _tokens(self.retain, retain))

    def at(self, step: int) -> Iterator[MicroBatch]:
        """The micro-batches of this process; every process has as many.

        A process left without a row in a small last batch repeats the first row with weight 0: a transform may talk to
        the other processes in every backward, so none of them may skip one.
        """
        forget, retain = self.order.at(step)
        world = self.processes.world
        rounds = -(-len(forget) // (self.per_forward * world))
        parts = even_parts(len(forget), rounds * world)
        for part in parts[self.processes.rank :: world]:
            rows = part if part.stop > part.start else slice(0, 1)
            yield MicroBatch(
                self._batch(self.forget, forget[rows]),
                self._batch(self.retain, retain[rows]) if retain else None,
                float(rows is part),
            )

    def _batch(self, items: Sequence[Encoded], index: Sequence[int]) -> Batch:
        return collate([items[i] for i in index], self.pad_id, index).to(self.device)


def even_parts(n: int, parts: int) -> list[slice]:
    """0..n-1 in `parts` runs whose lengths differ by at most one, the empty ones last."""
    small, larger = divmod(n, parts)
    starts = [i * small + min(i, larger) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(starts)]


def _tokens(items: Sequence[Encoded], index: Sequence[int]) -> int:
    return sum(len(items[i].ids) - items[i].answer_start for i in index)
