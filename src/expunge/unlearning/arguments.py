"""How the loop runs: names and meanings of `transformers.TrainingArguments` where it has them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

from expunge.errors import InputError, nearest

Schedule = Literal["constant", "linear", "cosine"]

CHANCE: Final = "chance"

_RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "eval_steps", "checkpoint_steps"), (1, math.inf)
    ),
    **dict.fromkeys(
        ("learning_rate", "max_steps", "min_steps", "max_grad_norm", "warmup_steps", "weight_decay", "adam_epsilon"),
        (0, math.inf),
    ),
    **dict.fromkeys(("stop_accuracy", "stop_within", "max_seconds", "checkpoint_seconds"), (0, math.inf)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    "stop_log_odds": (-math.inf, math.inf),
}
"""Least value and bound that is not reached; None is allowed wherever the type allows it."""


@dataclass(frozen=True, slots=True)
class UnlearnArguments:
    """Arguments of one unlearning run, all of them independent of the method.

    One step sees `per_device_train_batch_size * gradient_accumulation_steps * processes` forget items, and as many
    retain items.

    Args:
        learning_rate: the peak, of AdamW.
        per_device_train_batch_size: forget items per forward on each process (as many retain items ride along).
        gradient_accumulation_steps: forwards per step.
        max_steps: the budget of optimizer steps.
        seed: of the order of the items and of new parameters.
        max_grad_norm: the gradient's norm is clipped to this; 0 for no clipping.
        lr_scheduler_type: what follows the warm-up: "constant", "linear" or "cosine" (both to 0).
        warmup_steps: steps in which the rate climbs linearly. Unlike elsewhere the first step is not at rate 0.
        weight_decay: of AdamW, on parameters of two or more dimensions.
        adam_beta1: decay of AdamW's first moment.
        adam_beta2: decay of AdamW's second moment.
        adam_epsilon: of AdamW.
        eval_steps: steps between two scorings of the forget items, which can end the run.
        stop_log_odds: forgotten when the mean log-odds of the forget items against their options are at most this; 0 is
            ignorance, less is inversion; None for no such condition.
        stop_within: tolerance of `stop_log_odds`, nats per token. A run that went further past goes back along its last
            stretch until it is within, so that all methods stop at the same forget score; None lets it be. One whose
            objective has a way back up goes back from twice as far only, since it loses what it has learnt since
            (`landing`). Where accuracy alone decides it goes back too, to within 3 points or one item of it.
        min_steps: steps that are made whatever the scores: a method that hardens what it has forgotten needs them. Of a
            smaller `max_steps` all are made.
        stop_accuracy: and, if given, when the forget accuracy is at most this; "chance" for that of a uniform guess.
        max_seconds: the budget of time, resumed runs included; None for no limit.
        checkpoint_seconds: time between two checkpoints, if there is an output folder.
        checkpoint_steps: steps between two checkpoints, besides; None for none.

    Raises:
        InputError: a value is out of its range.
    """

    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_steps: int = 60
    seed: int = 0
    max_grad_norm: float = 1.0
    lr_scheduler_type: Schedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    eval_steps: int = 3
    stop_log_odds: float | None = 0.0
    stop_within: float | None = 0.25
    min_steps: int = 0
    stop_accuracy: float | Literal["chance"] | None = None
    max_seconds: float | None = None
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        values = asdict(self)
        for name, (least, below) in _RANGES.items():
            value = values[name]
            if value is None or value == CHANCE:
                continue
            if not (isinstance(value, int | float) and least <= value < below):
                bound = f"at least {least}" + (f" and below {below}" if below < math.inf else " and finite")
                raise InputError(f"{name} must be {bound}.", f"{name}={value}")
        if self.lr_scheduler_type not in (known := get_args(Schedule)):
            raise InputError(
                "There is no such schedule.", f"{self.lr_scheduler_type!r}", nearest(self.lr_scheduler_type, known)
            )

    @property
    def least_steps(self) -> int:
        """How many steps are made whatever the scores."""
        return min(self.min_steps, self.max_steps)

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        match self.lr_scheduler_type:
            case "constant":
                return self.learning_rate
            case "linear":
                return self.learning_rate * (1 - done)
            case "cosine":
                return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
