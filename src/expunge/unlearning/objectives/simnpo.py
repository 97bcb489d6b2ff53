"""SimNPO: negative preference optimization without a starting model, on the log-probability per token.

    L_f = -(2/beta) mean_i log sigma( -(beta/|y_i|) log P(y_i | x_i) - margin )                       Fan et al. 2024
    L   = forget_weight L_f + retain_weight CE(r)

|y_i| is the number of tokens of answer i, the mean is over forget items. The gradient is that of ascent on the mean
log-probability per token of each answer, times

    2 sigma( (beta/|y_i|) log P(y_i | x_i) + margin )

so an answer is let go once it is improbable in itself, whatever it was at the start, and a long answer is pushed no
harder than a short one. NPO compares sums with those at the start instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from expunge.errors import InputError
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def simple_negative_preference(
    sequence: Float[Tensor, " items"], lengths: Int[Tensor, " items"], beta: float, margin: float, items: int
) -> Float[Tensor, ""]:
    """L_f, from log P of each forget answer and its tokens; `items` is the number to divide by."""
    per_token = sequence / lengths.clamp(min=1)
    return softplus(beta * per_token + margin).sum() * (2 / (beta * max(items, 1)))


@dataclass(frozen=True, slots=True)
class SimNPO(Balanced):
    """SimNPO with a retain term (Fan et al. 2024).

    Args:
        forget_weight: gamma; the usual one is 0.125.
        beta: inverse temperature, > 0.
        margin: reward margin; the larger, the longer an answer that is already improbable is pushed.
    """

    forget_weight: float = 0.125
    beta: float = 4.5
    margin: float = 0.0

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        if not 0 < self.beta < math.inf:
            raise InputError("beta must be a finite number above 0.", f"beta={self.beta}")
        if not math.isfinite(self.margin):
            raise InputError("margin must be a finite number.", f"margin={self.margin}")

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        return simple_negative_preference(forget.sequence, forget.counts, self.beta, self.margin, totals.forget_items)
