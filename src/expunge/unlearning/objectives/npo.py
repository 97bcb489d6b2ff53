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
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def negative_preference(
    sequence: Float[Tensor, " items"], start: Float[Tensor, " items"], beta: float, items: int
) -> Float[Tensor, ""]:
    """L_f, from log P of each forget answer now and at the start; `items` is the number to divide by."""
    return softplus(beta * (sequence - start)).sum() * (2 / (beta * max(items, 1)))


@dataclass(frozen=True, slots=True)
class NPO(Balanced):
    """NPO with a retain term (Zhang et al. 2024).

    Args:
        beta: inverse temperature, > 0; the smaller, the nearer to gradient ascent.
    """

    uses_forget_start: ClassVar[bool] = True

    beta: float = 0.1

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        if not 0 < self.beta < float("inf"):
            raise InputError("beta must be a finite number above 0.", f"beta={self.beta}")

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        if start.forget is None:
            raise InternalError("NPO needs the starting model's log-probabilities of the forget answers.")
        return negative_preference(forget.sequence, start.forget, self.beta, totals.forget_items)
