"""The rows of a step, cut into micro-batches and dealt to the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from expunge.data.collate import Batch, Encoded, collate
from expunge.data.order import PairedOrder
from expunge.unlearning.anchors import Anchor
from expunge.unlearning.objectives.base import Totals
from expunge.unlearning.processes import Processes


@dataclass(frozen=True, slots=True)
class CompanionRows:
    """Rows that belong to forget rows, as other answers to their prompts: `owner` is the forget row of each,
    `rows.index` its number over all items."""

    rows: Batch
    owner: Int[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward, and those read apart: companions, and `anchors`, which are held.

    `weight` is 1, or 0 for rows that are only there to keep the processes in step.
    """

    forget: Batch
    retain: Batch | None
    weight: float
    companions: CompanionRows | None = None
    anchors: Batch | None = None


Among = Callable[[int], bool]
"""Whether a forget item, by its index, is one of those that are wanted."""

Owned = Sequence[tuple[Encoded, ...]]
"""For each forget item the rows that belong to it."""

Grouped = Sequence[tuple[tuple[Encoded, ...], ...]]
"""For each forget item groups of rows, each with a prompt of its own, the answer's first."""


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
        twins: for each forget item answer and options after the prompts of its made-up twins; empty where the objective
            asks for none.
        anchors: for each forget item the rows that are held, one of them in each step, in turn from epoch to epoch.
        options: for each forget item its wrong options, as a transform asks; empty where none does.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    order: PairedOrder
    per_forward: int
    pad_id: int
    processes: Processes
    device: torch.device
    companions: Owned = ()
    twins: Grouped = ()
    anchors: Sequence[tuple[Anchor, ...]] = ()
    options: Owned = ()

    def totals(self, step: int, among: Among | None = None) -> Totals:
        """The counts of the whole step, or of its forget items `among` all."""
        forget, retain = self._drawn(step, among)
        return Totals(
            _tokens(self.forget, forget),
            len(forget),
            _tokens(self.retain, retain),
            forget_positions=_positions(self.forget, forget),
            retain_positions=_positions(self.retain, retain),
        )

    def at(self, step: int, among: Among | None = None) -> Iterator[MicroBatch]:
        """The micro-batches of this process; every process has as many, and none where no forget item is `among` them.

        A process left without a row in a small last batch repeats the first row with weight 0: a transform may talk to
        the other processes in every backward, so none of them may skip one.
        """
        forget, retain = self._drawn(step, among)
        if not forget:
            return
        world = self.processes.world
        rounds = -(-len(forget) // (self.per_forward * world))
        parts = even_parts(len(forget), rounds * world)
        turn = step // self.order.steps_per_epoch
        anchored = [tuple(anchor.row for anchor in own) for own in self.anchors]
        for part in parts[self.processes.rank :: world]:
            rows = part if part.stop > part.start else slice(0, 1)
            held = self._owned(anchored, forget[rows], turn) if anchored else None
            yield MicroBatch(
                self._batch(self.forget, forget[rows]),
                self._batch(self.retain, retain[rows]) if retain else None,
                float(rows is part),
                self._owned(self.companions, forget[rows]) if self.companions else None,
                held.rows if held else None,
            )

    def options_of(self, forget: Batch) -> CompanionRows:
        """The wrong options of these forget rows; each item has one at least where a transform asks for them."""
        found = self._owned(self.options, forget.index.tolist())
        assert found is not None
        return found

    def _drawn(self, step: int, among: Among | None) -> tuple[Sequence[int], Sequence[int]]:
        """The forget and the retain items of a step."""
        forget, retain = self.order.at(step)
        return forget if among is None else [item for item in forget if among(item)], retain

    def _owned(self, owned: Owned, index: Sequence[int], turn: int | None = None) -> CompanionRows | None:
        """The rows that belong to the forget items `index`: all of them, or of each item the one whose turn it is."""
        first = list(accumulate((len(own) for own in owned), initial=0))
        chosen = [
            (row, first[item] + k, owned[item][k])
            for row, item in enumerate(index)
            for k in range(len(owned[item]))
            if turn is None or k == turn % len(owned[item])
        ]
        if not chosen:
            return None
        owners, numbers, encoded = zip(*chosen, strict=True)
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
