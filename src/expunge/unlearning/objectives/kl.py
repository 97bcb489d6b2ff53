"""Gradient ascent held in place by the starting model's own predictions on the retain answers.

    L = -forget_weight CE(f) + retain_weight (1/T_r) sum_t KL( P_start(. | x, y_<t) || P(. | x, y_<t) )

t runs over the T_r answer tokens of the retain batch: no prompt, no padding. arXiv:2401.06121 (TOFU), "KL
minimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from expunge.errors import InternalError
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals
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
class KL(Balanced):
    """KL minimisation (Maini et al. 2024)."""

    uses_retain_start: ClassVar[bool] = True

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """-CE(f)."""
        return gradient_ascent(forget.sequence, totals.forget_tokens)

    def retain_loss(self, retain: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """KL(start || model) on the answer tokens of r."""
        if start.retain_logits is None:
            raise InternalError("KL needs the starting model's logits on the retain rows.")
        return kl_from_start(start.logits(retain.hidden), start.retain_logits, totals.retain_tokens)
