"""Weighted gradient ascent: each forget token is pushed as hard as it is still known.

    L_f = -(1/T_f) sum_t p_t^beta l_t,     l_t = -log p_t,   p_t^beta held constant                  Wang et al. 2025
    L   = forget_weight L_f + retain_weight CE(r)

t runs over the T_f answer tokens of the forget batch, p_t is the probability of token t. Ascent alone spends most of
its gradient on tokens that are long forgotten, since its weight is 1 whatever p_t; here a token's push dies with its
probability. beta = 0 is gradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Balanced, StartValues, Totals, require_weights

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def weighted_ascent(
    token: Float[Tensor, " tokens"], weight: Float[Tensor, " tokens"], tokens: int
) -> Float[Tensor, ""]:
    """L_f, from log p_t and the weight of each forget token, which gets no gradient; `tokens` is what to divide by."""
    return (weight.detach() * token).sum() / max(tokens, 1)


@dataclass(frozen=True, slots=True)
class WGA(Balanced):
    """WGA with a retain term (Wang et al. 2025).

    Args:
        beta: exponent of the weight, >= 0; the larger, the sooner a token is let go.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        require_weights(beta=self.beta)

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        return weighted_ascent(forget.token, (self.beta * forget.token).exp(), totals.forget_tokens)
