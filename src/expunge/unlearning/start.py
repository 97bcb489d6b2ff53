"""What the untouched model says, computed once before training: no second model is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoded
from expunge.models.answers import Reference, cache_reference, length_sorted
from expunge.models.architecture import Readout, describe
from expunge.models.states import cache_states
from expunge.unlearning.batches import MicroBatch, StepBatches
from expunge.unlearning.objectives.base import Companions, Objective, StartValues
from expunge.unlearning.parametrizations.layers import chosen_blocks


@dataclass(frozen=True, slots=True)
class StartCache:
    """Start values of all items that the run will meet.

    `place` leads from a retain item to its row of `retain` and `retain_states`; `block` is what is read instead of the
    head, if anything is.
    """

    read: Readout
    forget: Reference | None
    retain: Reference | None
    place: dict[int, int]
    companions: Reference | None = None
    block: nn.Module | None = None
    retain_states: tuple[Tensor, ...] = ()

    def of(self, part: MicroBatch, companions: Companions | None = None) -> StartValues:
        """Those of one micro-batch's rows; `companions` are passed on."""
        sequence = before = logits = states = None
        if self.forget is not None:
            sequence = self.forget.sequence[part.forget.index]
            if self.forget.head is not None:
                before = self.forget.logits(self.forget.states(part.forget.index))
        if self.place and part.retain is not None:
            places = [self.place[i] for i in part.retain.index.tolist()]
            if self.retain is not None:
                logits = self.retain.logits(self.retain.states(places))
            if self.retain_states:
                states = torch.cat([self.retain_states[i] for i in places])
        beside = None
        if self.companions is not None and part.companions is not None:
            beside = self.companions.sequence[part.companions.rows.index]
        return StartValues(sequence, logits, self.read.logits, companions, beside, before, states)


def cache_start(
    objective: Objective, model: PreTrainedModel, read: Readout, batches: StepBatches, steps: int
) -> StartCache:
    """The values that `objective` asks for in the first `steps` steps; retain items that never come are left out."""
    place: dict[int, int] = {}
    forget = retain = None
    states: tuple[Tensor, ...] = ()
    block = _block(model, objective.state_layer)
    if objective.uses_forget_start or objective.uses_forget_start_logits:
        forget = _reference(model, batches, batches.forget, keep_hidden=objective.uses_forget_start_logits)
    if batches.retain and (objective.uses_retain_start or block is not None):
        met = sorted({i for step in range(steps) for i in batches.order.at(step)[1]})
        place = {item: row for row, item in enumerate(met)}
        kept = [batches.retain[i] for i in met]
        if block is not None:
            states = cache_states(model, read.backbone, block, _sorted(batches, kept))
        elif kept:
            retain = _reference(model, batches, kept, keep_hidden=True)
    companions = None
    if objective.uses_companion_start:
        flat = [encoded for found in batches.companions for encoded in found]
        companions = _reference(model, batches, flat, keep_hidden=False) if flat else None
    return StartCache(read, forget, retain, place, companions, block, states)


def _block(model: PreTrainedModel, layer: int | None) -> nn.Module | None:
    """Block `layer`; InputError where the model has none such."""
    if layer is None:
        return None
    arch = describe(model)
    return arch.blocks[chosen_blocks(arch, (layer,))[0]]


def _sorted(batches: StepBatches, items: Sequence[Encoded]) -> Iterator[Batch]:
    return length_sorted(items, batches.pad_id, 2 * batches.per_forward)


def _reference(
    model: PreTrainedModel, batches: StepBatches, items: Sequence[Encoded], *, keep_hidden: bool
) -> Reference:
    return cache_reference(model, _sorted(batches, items), keep_hidden)
