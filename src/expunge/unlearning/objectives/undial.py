"""UNDIAL: self-distillation towards the starting model with the answer's logit lowered.

    q_t = softmax(z_start,t - beta onehot(y_t))                    z_start: the starting model's logits
    L_f = -(1/T_f) sum_t sum_v q_t[v] log softmax(z_t)[v]                                           Dong et al. 2024
    L   = forget_weight L_f + retain_weight CE(r)

t runs over the T_f answer tokens of the forget batch: no prompt, no padding. y_t is the token there, v runs over the
vocabulary. The target stands still, so the loss is bounded below and its minimum is a model in which the odds of the
answer are exp(-beta) times what they were, all others among themselves being as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.errors import InternalError
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals, require_weights

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def distilled(
    logits: Float[Tensor, "tokens vocabulary"],
    start: Float[Tensor, "tokens vocabulary"],
    targets: Int[Tensor, " tokens"],
    beta: float,
    tokens: int,
) -> Float[Tensor, ""]:
    """L_f, from the logits now and at the start, and the id of each token; `tokens` is the number to divide by."""
    lowered = torch.full((len(targets), 1), -beta, dtype=start.dtype, device=start.device)
    teacher = start.scatter_add(1, targets[:, None], lowered).softmax(-1)
    return -(teacher * logits.log_softmax(-1)).sum() / max(tokens, 1)


@dataclass(frozen=True, slots=True)
class UNDIAL(Balanced):
    """UNDIAL with a retain term (Dong et al. 2024).

    Args:
        beta: how much the answer's logit is lowered, >= 0.
    """

    uses_forget_start_logits: ClassVar[bool] = True

    beta: float = 10.0

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        require_weights(beta=self.beta)

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        if start.forget_logits is None:
            raise InternalError("UNDIAL needs the starting model's logits on the forget answers.")
        logits = start.logits(forget.hidden)
        return distilled(logits, start.forget_logits, forget.targets, self.beta, totals.forget_tokens)
