"""Gradient ascent held in place by the starting model's own predictions on the retain answers.

    L = -forget_weight CE(f) + retain_weight (1/T_r) sum_t KL( P_start(. | x, y_<t) || P(. | x, y_<t) )

t runs over the T_r answer tokens of the retain batch: no prompt, no padding. arXiv:2401.06121 (TOFU), "KL
minimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.errors import InternalError
from expunge.unlearning.objectives.base import Objective, StartValues, Terms, Totals, require_weights, weighted
from expunge.unlearning.objectives.ga import gradient_ascent

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def kl_from_start(
    logits: Float[Tensor, "tokens vocabulary"], start: Float[Tensor, "tokens vocabulary"], tokens: int
) -> Float[Tensor, ""]:
    """sum_t KL(softmax(start) || softmax(logits)) / tokens, in nats."""
    target, current = start.log_softmax(-1), logits.log_softmax(-1)
    return (target.exp() * (target - current)).sum() / max(tokens, 1)


@dataclass(frozen=True, slots=True)
class KL(Objective):
    """KL minimisation (Maini et al. 2024).

    Args:
        forget_weight: gamma.
        retain_weight: alpha.
    """

    uses_retain_start: ClassVar[bool] = True

    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(forget_weight=self.forget_weight, retain_weight=self.retain_weight)

    def __call__(self, forget: Answers, retain: Answers | None, totals: Totals, start: StartValues) -> Terms:
        """-gamma CE(f) + alpha KL(start || model) on the answer tokens of r."""
        up = gradient_ascent(forget.sequence, totals.forget_tokens)
        return weighted(up, self._held(retain, totals, start), self.forget_weight, self.retain_weight)

    @staticmethod
    def _held(retain: Answers | None, totals: Totals, start: StartValues) -> Tensor:
        if retain is None:
            return torch.zeros(())
        if start.retain_logits is None:
            raise InternalError("KL needs the starting model's logits on the retain rows.")
        return kl_from_start(start.logits(retain.hidden), start.retain_logits, totals.retain_tokens)
