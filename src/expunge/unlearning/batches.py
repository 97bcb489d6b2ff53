"""The rows of a step, cut into micro-batches and dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from expunge.data.collate import Batch, Encoded, collate
from expunge.data.order import PairedOrder
from expunge.unlearning.objectives.base import Totals
from expunge.unlearning.processes import Processes


@dataclass(frozen=True, slots=True)
class CompanionRows:
    """Other answers to the prompts of forget rows: `owner` is the forget row of each, `rows.index` its number."""

    rows: Batch
    owner: Int[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward; `weight` is 1, or 0 for rows that are only there to keep the processes in step."""

    forget: Batch
    retain: Batch | None
    weight: float
    companions: CompanionRows | None = None


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
        companions: for each forget item other answers to its prompt, as the objective asks; empty where it does not.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    order: PairedOrder
    per_forward: int
    pad_id: int
    processes: Processes
    device: torch.device
    companions: Sequence[tuple[Encoded, ...]] = ()

    def totals(self, step: int) -> Totals:
        """The counts of the whole step."""
        forget, retain = self.order.at(step)
        return Totals(
            _tokens(self.forget, forget),
            len(forget),
            _tokens(self.retain, retain),
            forget_positions=_positions(self.forget, forget),
            retain_positions=_positions(self.retain, retain),
        )

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
                self._companions(forget[rows]) if self.companions else None,
            )

    def _companions(self, index: Sequence[int]) -> CompanionRows | None:
        """The companions of the forget items `index`, numbered through over all items."""
        first = list(accumulate((len(found) for found in self.companions), initial=0))
        numbers = [first[item] + k for item in index for k in range(len(self.companions[item]))]
        encoded = [found for item in index for found in self.companions[item]]
        owners = [row for row, item in enumerate(index) for _ in self.companions[item]]
        if not encoded:
            return None
        rows = collate(encoded, self.pad_id, numbers).to(self.device)
        return CompanionRows(rows, torch.tensor(owners, device=self.device))

    def _batch(self, items: Sequence[Encoded], index: Sequence[int]) -> Batch:
        return collate([items[i] for i in index], self.pad_id, index).to(self.device)


def even_parts(n: int, parts: int) -> list[slice]:
    """0..n-1 in `parts` runs whose lengths differ by at most one, the empty ones last."""
    small, larger = divmod(n, parts)
    starts = [i * small + min(i, larger) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(starts)]


def _tokens(items: Sequence[Encoded], index: Sequence[int]) -> int:
    return sum(len(items[i].ids) - items[i].answer_start for i in index)


def _positions(items: Sequence[Encoded], index: Sequence[int]) -> int:
    return sum(len(items[i].ids) for i in index)
