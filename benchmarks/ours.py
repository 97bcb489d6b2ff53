"""expunge's own step, taken out of its loop: `Stepper.step` on the same few batches again and again."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoder
from expunge.data.example import Example
from expunge.models.architecture import readout
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import make_stepper, step_batches
from expunge.unlearning.methods import METHODS
from expunge.unlearning.processes import Processes
from expunge.unlearning.start import cache_start

Facts = tuple[Sequence[Example], Sequence[Example]]
"""What to forget and what to retain."""


class OurStep:
    """The first of so many steps of `method`; a vanishing learning rate keeps the problem the same."""

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
        self.batches = step_batches(model, encoder, *facts, parts, arguments, Processes())
        trained = parts.parametrization.bind(model, arguments.seed)
        start = cache_start(parts.objective, model, readout(model), self.batches, arguments.max_steps)
        self.stepper = make_stepper(model, trained, parts, self.batches, start, arguments)

    def __call__(self) -> None:
        """Forward, backward, clip, step."""
        self.walk(range(1))

    def walk(self, numbers: Sequence[int]) -> None:
        """The steps of these numbers, one after the other."""
        for number in numbers:
            self.stepper.step(number)

    def pair(self) -> tuple[Batch, Batch]:
        """The forget and the retain batch that every step sees."""
        (part,) = self.batches.at(0)
        assert part.retain is not None
        return part.forget, part.retain
