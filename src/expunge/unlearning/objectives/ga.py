"""Gradient ascent: make the forget answers less likely, and look at nothing else.

    L = -CE(f) = (1/T_f) sum_i log P(y_i | x_i)                                              arXiv:2210.01504, eq. 1

T_f is the number of answer tokens of the forget batch. Unbounded below: only early stopping keeps the model alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Objective, StartValues, Totals, cross_entropy

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def gradient_ascent(sequence: Float[Tensor, " items"], tokens: int) -> Float[Tensor, ""]:
    """-CE(f), from log P of each forget answer and the number of their tokens."""
    return -cross_entropy(sequence, tokens)


@dataclass(frozen=True, slots=True)
class GradientAscent(Objective):
    """GA (Jang et al. 2023): the forget answers' NLL goes up, with no retain term."""

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """-CE(f)."""
        return gradient_ascent(forget.sequence, totals.forget_tokens)
