"""Direct preference optimization: a refusal is preferred to the answer that must go.

    r_i = [ log P(refusal | x_i) - log P_start(refusal | x_i) ] - [ log P(y_i | x_i) - log P_start(y_i | x_i) ]
    L_f = -(2/beta) mean_i log sigma( beta r_i )                          arXiv:2401.06121 (TOFU), "IdkDPO"
    L   = forget_weight L_f + retain_weight CE(r)

The preferred answer is "I can't answer the question." in arXiv:2509.22263. Because the refusal is the cheaper half of
the preference, the answer may hardly move: judge it by the answer's log-odds, not by the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from expunge.errors import InputError, InternalError
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals

if TYPE_CHECKING:
    from expunge.data.example import Example
    from expunge.models.answers import Answers

REFUSAL = "I can't answer the question."


def preference(reward: Float[Tensor, " items"], beta: float, items: int) -> Float[Tensor, ""]:
    """L_f, from the r_i and the number of items to divide by."""
    return softplus(-beta * reward).sum() * (2 / (beta * max(items, 1)))


@dataclass(frozen=True, slots=True)
class DPO(Balanced):
    """DPO towards a refusal, with a retain term.

    Args:
        beta: inverse temperature, > 0; searched in [0.1, 0.5] by arXiv:2509.22263.
        refusal: what is preferred.
    """

    uses_forget_start: ClassVar[bool] = True
    trains_companions: ClassVar[bool] = True
    uses_companion_start: ClassVar[bool] = True

    beta: float = 0.1
    refusal: str = REFUSAL

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        if not 0 < self.beta < float("inf"):
            raise InputError("beta must be a finite number above 0.", f"beta={self.beta}")
        if not self.refusal.strip():
            raise InputError("The refusal must say something.", f"refusal={self.refusal!r}")

    def companions(self, example: Example) -> tuple[str, ...]:
        """The refusal."""
        return (self.refusal,)

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f."""
        if start.forget is None or start.companions is None or start.companions_start is None:
            raise InternalError("DPO needs the starting model's log-probabilities of answers and refusals.")
        refused = start.companions.answers.sequence - start.companions_start
        return preference(refused - (forget.sequence - start.forget), self.beta, totals.forget_items)
