"""One optimizer step.

    for each micro-batch:   one fused forward of forget and retain rows, the head on answer positions only
                            objective -> loss, divided by the counts of the whole step; transforms look; backward
    gradients are summed over the processes; transforms finish; clipping; AdamW

Because the losses are divided by the counts of the whole step and the gradients are summed, neither the cut into
micro-batches nor the number of processes changes what is computed. DDP would average instead, and wrap the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from expunge.errors import NonFiniteLoss
from expunge.models.answers import forward_pair
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.batches import MicroBatch, StepBatches
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.objectives.base import Objective, Totals
from expunge.unlearning.start import StartCache
from expunge.unlearning.transforms.base import BoundTransform


@dataclass(frozen=True, slots=True)
class Stepper:
    """Everything that a step needs; its only state is that of the model, the optimizer and the transforms."""

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    objective: Objective
    transforms: Sequence[BoundTransform]
    optimizer: torch.optim.Optimizer
    batches: StepBatches
    start: StartCache
    arguments: UnlearnArguments

    def step(self, number: int) -> StepMetrics:
        """Make the step after `number` others; its metrics, but for the time.

        Raises:
            NonFiniteLoss: the loss or the gradient is; the weights are those of the last good step.
        """
        loss, forget, retain = self._backward(number)
        measured = {name: value for transform in self.transforms for name, value in transform.apply().items()}
        norm = self._clip(number)
        rate = self.arguments.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepMetrics(number + 1, 0.0, loss, forget, retain, norm, rate, transform=measured)

    def _backward(self, number: int) -> tuple[float, float, float]:
        """Gradients of the whole step; its loss and the two terms."""
        totals = self.batches.totals(number)
        parts = list(self.batches.at(number))
        sums = torch.zeros(3, dtype=torch.float64)
        for place, part in enumerate(parts, 1):
            sums += self._micro_batch(part, totals, last=place == len(parts)).double().cpu()
        total = self.batches.processes.sum
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                total(parameter.grad)
        loss, forget, retain = total(sums.to(self.batches.device)).tolist()
        self._require_finite("loss", loss, number)
        return loss, forget, retain

    def _micro_batch(self, part: MicroBatch, totals: Totals, *, last: bool) -> Tensor:
        """Add the gradient of one micro-batch; its share of the loss and the two terms."""
        with ExitStack() as watching:
            for transform in self.transforms:
                watching.enter_context(transform.watch(len(part.forget)))
            forget, retain = forward_pair(self.model, part.forget, part.retain, self.batches.pad_id, self.start.read)
        terms = self.objective(forget, retain, totals, self.start.of(part))
        loss = terms.loss * part.weight
        for transform in self.transforms:
            transform.before_backward(loss, forget, last)
        loss.backward()  # type: ignore[no-untyped-call]
        return part.weight * torch.stack([terms.loss.detach(), terms.forget, terms.retain])

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
