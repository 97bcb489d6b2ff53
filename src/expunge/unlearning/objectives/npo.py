"""Negative preference optimization: ascent that weakens by itself as an answer is forgotten.

    L_f = -(2/beta) mean_i log sigma( -beta [ log P(y_i | x_i) - log P_start(y_i | x_i) ] )   arXiv:2404.05868, eq. 3
    L   = forget_weight L_f + retain_weight CE(r)

The mean is over forget items, P is that of the whole answer. The gradient is that of ascent on log P(y_i | x_i), times

    2 P^beta / (P^beta + P_start^beta)

which is 1 at the start and tends to 0. For beta -> 0, L_f - (2/beta) log 2 tends to mean_i log P / P_start, which is
gradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from expunge.errors import InputError, InternalError
from expunge.unlearning.objectives.base import (
    Objective,
    StartValues,
    Terms,
    Totals,
    require_weights,
    retain_cross_entropy,
    weighted,
)

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def negative_preference(
    sequence: Float[Tensor, " items"], start: Float[Tensor, " items"], beta: float, items: int
) -> Float[Tensor, ""]:
    """L_f, from log P of each forget answer now and at the start; `items` is the number to divide by."""
    return softplus(beta * (sequence - start)).sum() * (2 / (beta * max(items, 1)))


@dataclass(frozen=True, slots=True)
class NPO(Objective):
    """NPO with a retain term (Zhang et al. 2024).

    Args:
        beta: inverse temperature, > 0; the smaller, the nearer to gradient ascent.
        forget_weight: gamma.
        retain_weight: alpha.
    """

    uses_forget_start: ClassVar[bool] = True

    beta: float = 0.1
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(forget_weight=self.forget_weight, retain_weight=self.retain_weight)
        if not 0 < self.beta < float("inf"):
            raise InputError("beta must be a finite number above 0.", f"beta={self.beta}")

    def __call__(self, forget: Answers, retain: Answers | None, totals: Totals, start: StartValues) -> Terms:
        """gamma L_f + alpha CE(r)."""
        if start.forget is None:
            raise InternalError("NPO needs the starting model's log-probabilities of the forget answers.")
        away = negative_preference(forget.sequence, start.forget, self.beta, totals.forget_items)
        return weighted(away, retain_cross_entropy(retain, totals), self.forget_weight, self.retain_weight)
