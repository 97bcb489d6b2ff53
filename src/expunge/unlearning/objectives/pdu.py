"""PDU: forget answers are met by flat logits, as far as the retain loss stays within a tolerance.

    minimise  L_f = (1/T_f) sum_t ( max_v z_t[v] - mean_v z_t[v] )^2     subject to     CE(r) <= tolerance
    L = forget_weight L_f + a retain_weight CE(r),     a <- max(0, a + step_size (CE(r) - tolerance))
                                                                                                Entesari et al. 2025
t runs over the T_f answer tokens of the forget batch, v over the vocabulary, z_t are the logits that predict token t.
The loss does not know the answer: it asks for no opinion at all. `transforms.dual.DualAscent` moves a;
without it a is 1, and this is a plain weighted sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Balanced, StartValues, Totals

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def logit_margin(logits: Float[Tensor, "tokens vocabulary"], tokens: int) -> Float[Tensor, ""]:
    """L_f, from the logits that predict each forget token; `tokens` is the number to divide by."""
    return (logits.amax(-1) - logits.mean(-1)).square().sum() / max(tokens, 1)


@dataclass(frozen=True, slots=True)
class PDU(Balanced):
    """The primal loss of PDU (Entesari et al. 2025)."""

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        return logit_margin(start.logits(forget.hidden), totals.forget_tokens)
