"""What the untouched model says, computed once before training: no second model is ever in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from expunge.data.collate import Encoded
from expunge.models.answers import Reference, cache_reference, length_sorted
from expunge.models.architecture import Readout
from expunge.unlearning.batches import MicroBatch, StepBatches
from expunge.unlearning.objectives.base import Objective, StartValues


@dataclass(frozen=True, slots=True)
class StartCache:
    """Start values of all items that the run will meet; `place` leads from a retain item to its row of `retain`."""

    read: Readout
    forget: Reference | None
    retain: Reference | None
    place: dict[int, int]

    def of(self, part: MicroBatch) -> StartValues:
        """Those of one micro-batch's rows."""
        sequence = None if self.forget is None else self.forget.sequence[part.forget.index]
        logits = None
        if self.retain is not None and part.retain is not None:
            places = [self.place[i] for i in part.retain.index.tolist()]
            logits = self.retain.logits(self.retain.states(places))
        return StartValues(sequence, logits, self.read.logits)


def cache_start(
    objective: Objective, model: PreTrainedModel, read: Readout, batches: StepBatches, steps: int
) -> StartCache:
    """The values that `objective` asks for in the first `steps` steps; retain items that never come are left out."""
    place: dict[int, int] = {}
    forget = retain = None
    if objective.uses_forget_start:
        forget = _reference(model, batches, batches.forget, keep_hidden=False)
    if objective.uses_retain_start and batches.retain:
        met = sorted({i for step in range(steps) for i in batches.order.at(step)[1]})
        place = {item: row for row, item in enumerate(met)}
        retain = _reference(model, batches, [batches.retain[i] for i in met], keep_hidden=True) if met else None
    return StartCache(read, forget, retain, place)


def _reference(
    model: PreTrainedModel, batches: StepBatches, items: Sequence[Encoded], *, keep_hidden: bool
) -> Reference:
    return cache_reference(model, length_sorted(items, batches.pad_id, 2 * batches.per_forward), keep_hidden)
