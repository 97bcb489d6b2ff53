"""CE-U: the model is taught its own opinion of everything but the answer.

    q_t = softmax(z_t with z_t[y_t] = -inf), held constant         z_t: the model's own logits
    L_f = -(1/T_f) sum_t sum_v q_t[v] log softmax(z_t)[v]                                                  Yang 2025
    L   = forget_weight L_f + retain_weight CE(r)

t runs over the T_f answer tokens of the forget batch, y_t is the token there, v runs over the vocabulary. With
p_t = softmax(z_t) the gradient on the logits is

    dL_f / dz_t[y_t] = p_t[y_t] / T_f,     dL_f / dz_t[v] = -p_t[v] p_t[y_t] / ((1 - p_t[y_t]) T_f)

It vanishes as the answer becomes improbable, hence forgetting ends by itself, and no second model is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.unlearning.objectives.base import Balanced, StartValues, Totals

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def cross_entropy_without(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"], tokens: int
) -> Float[Tensor, ""]:
    """L_f, from the logits that predict each forget token and its id; `tokens` is the number to divide by."""
    others = logits.detach().scatter(1, targets[:, None], -torch.inf)
    return -(others.softmax(-1) * logits.log_softmax(-1)).sum() / max(tokens, 1)


@dataclass(frozen=True, slots=True)
class CEU(Balanced):
    """CE-U with a retain term (Yang 2025)."""

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        return cross_entropy_without(start.logits(forget.hidden), forget.targets, totals.forget_tokens)
