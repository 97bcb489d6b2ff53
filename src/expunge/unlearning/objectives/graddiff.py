"""Gradient difference: up on the forget answers, down on the retain answers.

    L = -forget_weight CE(f) + retain_weight CE(r)              arXiv:2401.06121 (TOFU), "gradient difference"

Each CE is the mean NLL over the answer tokens of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Balanced, StartValues, Totals
from expunge.unlearning.objectives.ga import gradient_ascent

if TYPE_CHECKING:
    from expunge.models.answers import Answers


@dataclass(frozen=True, slots=True)
class GradDiff(Balanced):
    """GD (Maini et al. 2024): the host loss of Ssiuu."""

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """-CE(f)."""
        return gradient_ascent(forget.sequence, totals.forget_tokens)
