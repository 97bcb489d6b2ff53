"""Gradient difference: up on the forget answers, down on the retain answers.

    L = -forget_weight CE(f) + retain_weight CE(r)              arXiv:2401.06121 (TOFU), "gradient difference"

Each CE is the mean NLL over the answer tokens of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.unlearning.objectives.base import (
    Objective,
    StartValues,
    Terms,
    Totals,
    require_weights,
    retain_cross_entropy,
    weighted,
)
from expunge.unlearning.objectives.ga import gradient_ascent

if TYPE_CHECKING:
    from expunge.models.answers import Answers


@dataclass(frozen=True, slots=True)
class GradDiff(Objective):
    """GD (Maini et al. 2024): the host loss of Ssiuu.

    Args:
        forget_weight: gamma.
        retain_weight: alpha.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(forget_weight=self.forget_weight, retain_weight=self.retain_weight)

    def __call__(self, forget: Answers, retain: Answers | None, totals: Totals, start: StartValues) -> Terms:
        """-gamma CE(f) + alpha CE(r)."""
        up = gradient_ascent(forget.sequence, totals.forget_tokens)
        return weighted(up, retain_cross_entropy(retain, totals), self.forget_weight, self.retain_weight)
