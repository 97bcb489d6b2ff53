"""Saturation and importance: forget tokens are weighted by how far they are from both forgotten and certain.

    L_f = -(1/T_f) sum_t p_t^beta1 (1 - p_t)^beta2 l_t,     l_t = -log p_t,   the weight held constant
    L   = forget_weight L_f + retain_weight CE(r)                                                    Yang et al. 2025

t runs over the T_f answer tokens of the forget batch, p_t is the probability of token t. The first factor lets a token
go once it is forgotten (saturation); the second spares those that anyone would say here, such as the rest of a word
that has begun (importance). beta2 = 0 is WGA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Balanced, StartValues, Totals, require_weights
from expunge.unlearning.objectives.wga import weighted_ascent

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def saturation_importance(token: Float[Tensor, " tokens"], beta1: float, beta2: float) -> Float[Tensor, " tokens"]:
    """p^beta1 (1 - p)^beta2, from log p; 1 - p keeps its digits where p is near 1."""
    known = token.detach()
    return (beta1 * known).exp() * (-torch.expm1(known)).clamp(min=0) ** beta2


@dataclass(frozen=True, slots=True)
class SatImp(Balanced):
    """SatImp with a retain term (Yang et al. 2025).

    Args:
        beta1: exponent of p, >= 0.
        beta2: exponent of 1 - p, >= 0.
    """

    beta1: float = 5.0
    beta2: float = 1.0

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        require_weights(beta1=self.beta1, beta2=self.beta2)

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        weight = saturation_importance(forget.token, self.beta1, self.beta2)
        return weighted_ascent(forget.token, weight, totals.forget_tokens)
