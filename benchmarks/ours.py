"""expunge's own step, taken out of its loop: `Stepper.step` on the first step's batch again and again."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoder
from expunge.data.example import Example
from expunge.data.order import PairedOrder
from expunge.models.architecture import describe
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.batches import StepBatches
from expunge.unlearning.methods import METHODS
from expunge.unlearning.processes import Processes
from expunge.unlearning.start import cache_start
from expunge.unlearning.step import Stepper, adamw
from expunge.unlearning.transforms.base import Site

Facts = tuple[Sequence[Example], Sequence[Example]]
"""What to forget and what to retain."""


class OurStep:
    """One step of `method`; a vanishing learning rate keeps the problem the same.

    Args:
        steps: how many different steps are made in turn; 1 repeats the first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        method: str,
        facts: Facts,
        batch_size: int,
        steps: int = 1,
    ) -> None:
        arguments = UnlearnArguments(learning_rate=1e-12, per_device_train_batch_size=batch_size, max_steps=steps)
        parts = METHODS[method]
        forget, retain = ([encoder.encode(example.prompt, example.answer) for example in items] for items in facts)
        order = PairedOrder(len(forget), len(retain), batch_size, arguments.seed)
        beside = [tuple(encoder.encode(e.prompt, text) for text in parts.objective.companions(e)) for e in facts[0]]
        companions = beside if any(beside) else ()
        self.batches = StepBatches(
            forget, retain, order, batch_size, encoder.pad_id, Processes(), model.device, companions
        )
        self._made, self._steps = 0, steps
        arch = describe(model)
        start = cache_start(parts.objective, model, arch, self.batches, arguments.max_steps)
        trained = parts.parametrization.bind(model, arguments.seed).parameters
        site = Site(model, arch, trained, self.batches.processes.sum)
        transforms = [transform.bind(site) for transform in parts.transforms]
        optimizer = adamw(trained, arguments)
        self.stepper = Stepper(model, trained, parts.objective, transforms, optimizer, self.batches, start, arguments)

    def __call__(self) -> None:
        """Forward, backward, clip, step."""
        self.stepper.step(self._made % self._steps)
        self._made += 1

    def pair(self) -> tuple[Batch, Batch]:
        """The forget and the retain batch that every step sees."""
        (part,) = self.batches.at(0)
        assert part.retain is not None
        return part.forget, part.retain
