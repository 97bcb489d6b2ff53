"""Say "I don't know" instead: cross-entropy on a refusal as the answer to the forget prompts.

    L_f = CE(refusal | x_f)                                               arXiv:2401.06121 (TOFU), "IdkNLL"
    L   = forget_weight L_f + retain_weight CE(r)

Nothing in it lowers the answer that must go: the refusal is learnt on top, so expect the fact to be hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from expunge.errors import InputError, InternalError
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals, cross_entropy

if TYPE_CHECKING:
    from expunge.data.example import Example
    from expunge.models.answers import Answers


@dataclass(frozen=True, slots=True)
class IdkNLL(Balanced):
    """Fine-tuning on a refusal, with a retain term.

    Args:
        refusal: what is taught.
    """

    trains_companions: ClassVar[bool] = True

    refusal: str = "I don't know."

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        if not self.refusal.strip():
            raise InputError("The refusal must say something.", f"refusal={self.refusal!r}")

    def companions(self, example: Example) -> tuple[str, ...]:
        """The refusal."""
        return (self.refusal,)

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """Mean over the items of the refusal's NLL per token."""
        if start.companions is None:
            raise InternalError("IdkNLL needs its refusals.")
        answers = start.companions.answers
        return cross_entropy(answers.sequence / answers.counts, totals.forget_items)
