"""One optimizer step.

    for each micro-batch:   one fused forward of forget and retain rows, the head on answer positions only
                            objective -> loss, divided by the counts of the whole step; transforms look; backward
                            rows that are held, if any: a forward and a backward of their own
    gradients are summed over the processes; transforms finish; clipping; AdamW

Because the losses are divided by the counts of the whole step and the gradients are summed, neither the cut into
micro-batches nor the number of processes changes what is computed. DDP would average instead, and wrap the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import DynamicCache, PreTrainedModel

from expunge.data.collate import Batch
from expunge.errors import NonFiniteLoss
from expunge.models.answers import Answers, answer_log_probs, forward_pair
from expunge.models.candidates import answers_after, prompt_cache
from expunge.models.states import read_states_pair
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.batches import Among, MicroBatch, StepBatches
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.objectives.base import WHOLE, Companions, Objective, Share, Terms, Totals
from expunge.unlearning.start import StartCache
from expunge.unlearning.transforms.base import BoundTransform, Side

_SIDES: Final[tuple[Side, Side]] = ("forget", "retain")


@dataclass(frozen=True, slots=True)
class Stepper:
    """Everything that a step needs; its only state is that of the model, the optimizer and the transforms.

    `set_to_work` is that of the parametrization (`Trained`).
    """

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    objective: Objective
    transforms: Sequence[BoundTransform]
    optimizer: torch.optim.Optimizer
    batches: StepBatches
    start: StartCache
    arguments: UnlearnArguments
    set_to_work: Callable[[], None]

    def step(self, number: int) -> StepMetrics:
        """Make the step after `number` others; its metrics, but for the time.

        Raises:
            NonFiniteLoss: the loss or the gradient is; the weights are those of the last good step.
        """
        self.set_to_work()
        seen = Seen()
        Moment(self, number, seen).add(WHOLE)
        loss, forget, retain = self._reduced(seen, number)
        measured = seen.measured | {k: v for transform in self.transforms for k, v in transform.apply().items()}
        norm = self._clip(number)
        rate = self.arguments.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for transform in self.transforms:
                transform.settle(rate)
        self.optimizer.zero_grad(set_to_none=True)
        return StepMetrics(number + 1, 0.0, loss, forget, retain, norm, rate, transform=measured)

    def _reduced(self, seen: Seen, number: int) -> tuple[float, float, float | None]:
        """Gradients and terms summed over the processes: the loss and its two terms, None for a retain term that nobody
        asked for."""
        total = self.batches.processes.sum
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                total(parameter.grad)
        weights, terms = self.objective.weights, torch.zeros(3, dtype=torch.float64, device=self.batches.device)
        for place, side in enumerate(_SIDES):
            terms[place] = seen.terms.get(side, 0.0)
        terms[-1] = "retain" in seen.terms
        forget, retain, asked = total(terms).tolist()
        loss = weights.forget * forget + weights.retain * retain
        self._require_finite("loss", loss, number)
        return loss, forget, retain if asked else None

    def _clip(self, number: int) -> float:
        """The gradient's norm, which is then at most `max_grad_norm`."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = get_total_norm(gradients)
        value = float(norm)
        self._require_finite("gradient", value, number)
        if 0 < self.arguments.max_grad_norm < value:
            clip_grads_with_norm_(self.parameters.values(), self.arguments.max_grad_norm, norm)
        return value

    @staticmethod
    def _require_finite(what: str, value: float, number: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"The {what} became {value} in step {number + 1}; the weights are those before it.",
                fix="Lower the learning rate, or stop earlier.",
            )


@dataclass(slots=True)
class Seen:
    """What one step measures: each term where it was first evaluated, and what the transforms tell."""

    terms: dict[Side, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """One step in the making, as the transform at `depth` sees it; implements `transforms.base.Step`.

    Args:
        stepper: whose step.
        number: steps made before.
        seen: what the whole step measures.
        depth: number of transforms above.
        wanted: what those above ask for.
        among: the forget items that they ask for, all where it is None.
    """

    stepper: Stepper
    number: int
    seen: Seen
    depth: int = 0
    wanted: Share = WHOLE
    among: Among | None = None

    def add(self, share: Share, among: Among | None = None) -> None:
        """Have the next transform make the gradient or, below the last, the objective itself."""
        wanted = Share(self.wanted.forget * share.forget, self.wanted.retain * share.retain)
        if self.depth < len(self.stepper.transforms):
            below = replace(self, depth=self.depth + 1, wanted=wanted, among=both(self.among, among))
            with set_aside(self.stepper.parameters.values()):
                self.seen.measured |= self.stepper.transforms[self.depth].gradient(below)
        else:
            self._objective(wanted, both(self.among, among))

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every forget item has come once more."""
        return self.stepper.batches.order.steps_per_epoch

    def rows(self, side: Side, ahead: int = 0, among: Among | None = None) -> Iterator[Batch]:
        """Micro-batches of one side, without those that are only there to keep the processes in step."""
        for part in self.stepper.batches.at(self.number + ahead, among):
            batch = part.forget if side == "forget" else part.retain
            if part.weight and batch is not None:
                yield batch

    def answers(self, rows: Batch) -> Answers:
        """What the model says to `rows`, with its graph."""
        return answer_log_probs(self.stepper.model, rows, self.stepper.start.read)

    def options(self, rows: Batch) -> tuple[Batch, Tensor]:
        """The wrong options of forget rows, and which of `rows` owns each."""
        found = self.stepper.batches.options_of(rows)
        return found.rows, found.owner

    def tokens(self, side: Side, ahead: int = 0, among: Among | None = None) -> int:
        """Answer tokens of one side of the step `ahead` from now, over all processes."""
        totals = self.stepper.batches.totals(self.number + ahead, among)
        return totals.forget_tokens if side == "forget" else totals.retain_tokens

    def _objective(self, share: Share, among: Among | None) -> None:
        """Add the gradient of `share` of the loss, micro-batch after micro-batch."""
        if not share.forget and not (share.retain and self.stepper.batches.retain):
            return
        totals = self.stepper.batches.totals(self.number, among)
        parts = list(self.stepper.batches.at(self.number, among))
        if not parts:
            return
        sums = torch.zeros(2, dtype=torch.float64)
        for place, part in enumerate(parts, 1):
            terms = self._micro_batch(part, totals, share, last=place == len(parts))
            sums += part.weight * torch.stack([terms.forget, terms.retain]).double().cpu()
        for side, value, wanted in zip(_SIDES, sums.tolist(), (share.forget, share.retain), strict=True):
            if wanted:
                self.seen.terms.setdefault(side, value)

    def _micro_batch(self, part: MicroBatch, totals: Totals, share: Share, *, last: bool) -> Terms:
        """Add the gradient of one micro-batch."""
        stepper = self.stepper
        sides = part.forget if share.forget else None, part.retain if share.retain else None
        if share.forget and part.weight:
            for transform in stepper.transforms:
                transform.before_forward(part.forget)
        with ExitStack() as watching:
            for transform in stepper.transforms if share.forget else ():
                watching.enter_context(transform.watch(len(part.forget)))
            cache = self._cache(part) if share.forget else None
            forget, retain = forward_sides(stepper, *sides, cache)
        beside = None if forget is None else self._companions(part, cache)
        terms = stepper.objective(forget, retain, totals, stepper.start.of(part, beside), share)
        loss = terms.loss * part.weight
        if forget is not None:
            for transform in stepper.transforms:
                transform.before_backward(loss, forget, last)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        if forget is None or part.anchors is None:
            return terms
        anchored = self._anchors(part.anchors, totals, share.forget * part.weight)
        return replace(terms, forget=terms.forget + anchored)

    def _anchors(self, rows: Batch, totals: Totals, weight: float) -> Float[Tensor, ""]:
        """Add the gradient of rows that are held; their term.

        In the forward of the others they would take time, since long names pad, and memory for both graphs at once.
        """
        objective, kept = self.stepper.objective, self.stepper.start.anchored
        assert kept is not None  # an objective with anchors keeps what they are to say
        moved = objective.anchor_loss(self.answers(rows), kept[rows.index], totals)
        (weight * objective.weights.forget * moved).backward()  # type: ignore[no-untyped-call]
        return moved.detach()

    def _cache(self, part: MicroBatch) -> DynamicCache | None:
        """Where the forget rows' keys and values are kept for companions that are only looked at."""
        if part.companions is None or self.stepper.objective.trains_companions:
            return None
        batches = [batch for batch in (part.forget, part.retain, part.companions.rows) if batch is not None]
        return prompt_cache(self.stepper.model, sum(batch.input_ids.shape[1] for batch in batches))

    def _companions(self, part: MicroBatch, cache: DynamicCache | None) -> Companions | None:
        """What the model says now to other answers of the forget prompts, if the objective has any."""
        if part.companions is None:
            return None
        rows, owner = part.companions.rows, part.companions.owner
        if cache is not None:
            return Companions(answers_after(self.stepper.start.read, rows, part.forget, owner, cache), owner)
        with torch.set_grad_enabled(self.stepper.objective.trains_companions):
            return Companions(self.answers(rows), owner)


def forward_sides(
    stepper: Stepper, forget: Batch | None, retain: Batch | None, cache: DynamicCache | None
) -> tuple[Answers | None, Answers | None]:
    """What the objective reads of the rows that are there, from one forward: answers, or the states of one block."""
    model, pad_id, start = stepper.model, stepper.batches.pad_id, stepper.start
    if start.block is not None:
        return read_states_pair(start.read.backbone, start.block, forget, retain, pad_id)
    if forget is None:
        return None, None if retain is None else answer_log_probs(model, retain, start.read)
    return forward_pair(model, forget, retain, pad_id, start.read, cache)


@contextmanager
def set_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Every `.grad` is empty inside, and the sum of what was there and what came afterwards."""
    before = {p: p.grad for p in parameters if p.grad is not None}
    for p in before:
        p.grad = None
    yield
    for p, gradient in before.items():
        p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def both(one: Among | None, other: Among | None) -> Among | None:
    """The items that are among the ones and the others."""
    if one is None or other is None:
        return one or other
    return lambda item: one(item) and other(item)


def adamw(parameters: Mapping[str, nn.Parameter], arguments: UnlearnArguments) -> torch.optim.AdamW:
    """AdamW on `parameters`, fused where torch can; vectors (norms, biases) do not decay."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, arguments.weight_decay), (vectors, 0.0))
        if group
    ]
    return torch.optim.AdamW(
        groups,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters.values()),
    )
