"""What the untouched model says, computed once before training: no second model is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoded
from expunge.models.answers import Reference, cache_reference, length_sorted
from expunge.models.architecture import Readout, describe
from expunge.models.candidates import candidate_totals
from expunge.models.scores import grouped_log_odds
from expunge.models.states import cache_states
from expunge.unlearning.batches import CompanionRows, MicroBatch, Owned, StepBatches
from expunge.unlearning.objectives.base import Companions, Objective, StartValues
from expunge.unlearning.parametrizations.layers import chosen_blocks


@dataclass(frozen=True, slots=True)
class StartCache:
    """Start values of all items that the run will meet.

    `place` leads from a retain item to its row of `retain` and `retain_states`; `block` is what is read instead of the
    head, if anything is; `n_own` the number of forget items before those that are held, None where none are.
    """

    read: Readout
    forget: Reference | None
    retain: Reference | None
    place: dict[int, int]
    companions: Reference | None = None
    block: nn.Module | None = None
    retain_states: tuple[Tensor, ...] = ()
    anchored: Tensor | None = None
    goals: Tensor | None = None
    n_own: int | None = None

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
        return StartValues(
            forget=sequence,
            retain_logits=logits,
            logits=self.read.logits,
            companions=companions,
            companions_start=_of_rows(self.companions, part.companions),
            forget_logits=before,
            retain_states=states,
            goals=None if self.goals is None else self.goals[part.forget.index],
            held=None if self.n_own is None else part.forget.index >= self.n_own,
        )


def _of_rows(start: Reference | None, own: CompanionRows | None) -> Tensor | None:
    return None if start is None or own is None else start.sequence[own.rows.index]


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
    companions = _owned(model, batches, batches.companions) if objective.uses_companion_start else None
    anchored = goals = None
    own = batches.order.n_forget
    if objective.twins:
        said = _said_to_twins(model, read, batches)
        margins = _twin_margins(said, len(batches.forget)).to(batches.device)
        goals = torch.cat([objective.goals(part) for part in (margins[:own], margins[own:]) if len(part)])
        anchored = _anchored(model, batches, said)
    n_own = own if batches.order.n_held else None
    return StartCache(read, forget, retain, place, companions, block, states, anchored, goals, n_own)


def _block(model: PreTrainedModel, layer: int | None) -> nn.Module | None:
    """Block `layer`; InputError where the model has none such."""
    if layer is None:
        return None
    arch = describe(model)
    return arch.blocks[chosen_blocks(arch, (layer,))[0]]


def _sorted(batches: StepBatches, items: Sequence[Encoded]) -> Iterator[Batch]:
    return length_sorted(items, batches.pad_id, 2 * batches.per_forward)


def _owned(model: PreTrainedModel, batches: StepBatches, owned: Owned) -> Reference | None:
    """The values of rows that belong to forget items; None where none has any."""
    flat = [encoded for own in owned for encoded in own]
    return _reference(model, batches, flat, keep_hidden=False) if flat else None


@torch.no_grad()
def _said_to_twins(model: PreTrainedModel, read: Readout, batches: StepBatches) -> dict[int, Tensor]:
    """Of each forget item that has twins, per-token means of log P: one row a twin, the answer's first."""
    found = {}
    for item, groups in enumerate(batches.twins):
        if groups:
            totals, tokens = candidate_totals(model, read, groups, batches.pad_id)
            found[item] = (totals / torch.tensor(tokens)).view(len(groups), -1)
    return found


def _twin_margins(said: Mapping[int, Tensor], n: int) -> Tensor:
    """Of each of `n` forget items the mean log-odds of its twins; of one without any the mean over the others, or 0."""
    found = torch.full((n,), torch.nan)
    for item, means in said.items():
        found[item] = grouped_log_odds(means.flatten(), [means.shape[1]] * len(means)).mean()
    return found.nan_to_num(float(found.nanmean().nan_to_num(0.0)))


def _anchored(model: PreTrainedModel, batches: StepBatches, said: Mapping[int, Tensor]) -> Tensor | None:
    """What each row that is held is to keep; None where none is."""
    kept = _owned(model, batches, [tuple(each.row for each in own if not each.option) for own in batches.anchors])
    if kept is None:
        return None
    themselves = iter(kept.sequence)
    held = [(item, anchor) for item, own in enumerate(batches.anchors) for anchor in own]
    told = [anchor.value(said[item]) if anchor.option else next(themselves) for item, anchor in held]
    return torch.stack([value.to(batches.device) for value in told])


def _reference(
    model: PreTrainedModel, batches: StepBatches, items: Sequence[Encoded], *, keep_hidden: bool
) -> Reference:
    return cache_reference(model, _sorted(batches, items), keep_hidden)
