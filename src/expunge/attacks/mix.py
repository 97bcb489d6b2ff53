"""Mixing: go back from the unlearned weights towards the original ones.

    theta_a = (1 - a) theta_0 + a theta_u           theta_0 the original, theta_u the unlearned model

Knowledge that a small step back brings back was hardly moved. But the original knows it, and small enough an `a` brings
it back whatever was done: what this attack finds says something only beside a control that is mixed alike. The original
is read tensor by tensor.

The same line calibrates (UWC, arXiv:2406.09179): methods that cost differently much are compared where each keeps as
much of what has to stay, at the largest a at which the score of that is still, say, 0.9 of the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from expunge.attacks.base import T, Target
from expunge.attacks.trials import Trial, Trials
from expunge.attacks.weights import Weights, lent
from expunge.errors import InputError
from expunge.models.projections import attached
from expunge.models.stored import Reader, read_weights


@dataclass(frozen=True)
class Mix(Trials):
    """Weighted means of the original's and the unlearned model's weights.

    Args:
        shares: a of the module's formula, the share of the unlearned model; each is one trial.
    """

    shares: tuple[float, ...] = (0.9, 0.75, 0.5, 0.25)

    name: ClassVar[str] = "mix"
    summary: ClassVar[str] = "mix the weights with the original's, score all forgotten facts"
    control_only: ClassVar[bool] = True
    uses_original: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.shares or not all(0 <= share < 1 for share in self.shares):
            raise InputError("Shares must be at least 0 and below 1.", f"{self.name}: shares={self.shares}")

    def count(self, target: Target[T]) -> int:
        """Shares; InputError where the original is not known."""
        target.require_original()
        return len(self.shares)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each share."""
        original = read_weights(target.require_original(), target.model)
        for share in self.shares:
            called = f"{100 * share:g} % unlearned, {100 - 100 * share:g} % original"
            yield Trial(called, partial(mixed, weights, original, share))

    def notes(self, target: Target[T]) -> tuple[str, ...]:
        """That projections of whole blocks, if there are any, were not mixed."""
        return ("The projections of whole blocks stood as they are.",) if attached(target.model) else ()


@contextmanager
def mixed(weights: Weights, original: Reader, share: float) -> Iterator[None]:
    """Inside, and until the weights are restored, the lent model has the weights of theta_a, a being `share`.

    The original's are taken in the dtype that the unlearned model has when it is not lent.
    """
    with torch.no_grad():
        for name, parameter in weights.model.named_parameters():
            own = weights.saved[name]
            theirs = original(name).to("cpu", own.dtype).to(parameter.dtype)
            parameter.copy_(torch.lerp(theirs, own.to(parameter.dtype), share))
    yield


def calibrate(
    model: PreTrainedModel,
    original: str | Path,
    score: Callable[[PreTrainedModel], float],
    *,
    keep: float = 0.9,
    precision: float = 0.01,
) -> float:
    """The largest a at which `score` of the mixed model is at least `keep` times that of the original.

    Found by bisection to within `precision`, never above: for a score that falls along the line from the original to
    the unlearned model. 1 where the unlearned model itself keeps so much. The model comes back bit-equal.

    Args:
        model: unlearned.
        original: folder or Hub id of the model that it was made from.
        score: of what has to stay, positive for the original: an accuracy, a mean probability; no log-odds.

    Raises:
        InputError: the original scores nothing, or `keep` or `precision` does not lie between 0 and 1.
    """
    if not (0 < keep <= 1 and 0 < precision < 1):
        raise InputError("keep and precision must lie between 0 and 1.", f"keep={keep}, precision={precision}")
    reader = read_weights(original, model)
    with lent(model) as weights:

        def at(share: float) -> float:
            with mixed(weights, reader, share):
                return score(model)

        if (whole := at(0.0)) <= 0:
            raise InputError(
                "A score that is not positive cannot be kept in part.", f"score {whole:g}", "Take another."
            )
        if at(1.0) >= keep * whole:
            return 1.0
        low, high = 0.0, 1.0
        while high - low > precision:
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle) >= keep * whole else (low, middle)
        return low
