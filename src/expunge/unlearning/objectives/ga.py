"""Gradient ascent: make the forget answers less likely, and look at nothing else.

    L = -CE(f) = (1/T_f) sum_i log P(y_i | x_i)                                              arXiv:2210.01504, eq. 1

T_f is the number of answer tokens of the forget batch. Unbounded below: only early stopping keeps the model alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.unlearning.objectives.base import Objective, StartValues, Terms, Totals, cross_entropy, weighted

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def gradient_ascent(sequence: Float[Tensor, " items"], tokens: int) -> Float[Tensor, ""]:
    """-CE(f), from log P of each forget answer and the number of their tokens."""
    return -cross_entropy(sequence, tokens)


@dataclass(frozen=True, slots=True)
class GradientAscent(Objective):
    """GA (Jang et al. 2023): the forget answers' NLL goes up, with no retain term."""

    uses_retain: ClassVar[bool] = False

    def __call__(self, forget: Answers, retain: Answers | None, totals: Totals, start: StartValues) -> Terms:
        """-CE(f)."""
        return weighted(gradient_ascent(forget.sequence, totals.forget_tokens), torch.zeros(()), 1.0, 0.0)
