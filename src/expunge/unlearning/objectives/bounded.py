"""Down to ignorance and no further: a hinge on the answer's margin over its wrong options.

    m_i = mean_t log P(y_it | x_i, y_i<t) - log mean_o exp( mean_t log P(o_it | x_i, o_i<t) )      o: options of item i
    L_f = (1/n) sum_i [ max(0, m_i - margin) + restore max(0, margin - m_i) ]
    L   = forget_weight L_f + retain_weight CE(r)

m_i is the log-odds that the audit reports: 0 is ignorance. Ascent (GA, GradDiff) has no lower bound and goes on into
inversion, which gives the answer away; NPO weakens but does not stop. Here an item that is no better known than its
options has no gradient left, or is brought back to them (`restore`) where something else drives it on. It is the
multi-class hinge loss (Crammer and Singer 2001) turned round: the right class must not win. The inverted hinge loss of
arXiv:2408.06621 resembles it, token by token against the next likeliest token, which it raises; here the options are
looked at and not pushed, since raising them would teach wrong answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from expunge.errors import InputError
from expunge.unlearning.objectives.base import Balanced, Companions, StartValues, Totals, require_weights

if TYPE_CHECKING:
    from expunge.data.example import Example
    from expunge.models.answers import Answers


def margins(forget: Answers, options: Companions) -> Float[Tensor, " items"]:
    """m_i of each forget row; every row must have an option."""
    answer = forget.sequence / forget.counts.clamp(min=1)
    option = options.answers.sequence / options.answers.counts.clamp(min=1)
    own = torch.arange(len(answer), device=option.device)[:, None] == options.owner
    spread = torch.where(own, option, -torch.inf)
    return answer - (torch.logsumexp(spread, 1) - own.sum(1).log())


def bounded_forget(
    margin: Float[Tensor, " items"], goal: float, restore: float | Float[Tensor, " items"], items: int
) -> Float[Tensor, ""]:
    """L_f, from the margins m_i and the number of items to divide by."""
    beyond = margin - goal
    return (beyond.clamp(min=0) + restore * (-beyond).clamp(min=0)).sum() / max(items, 1)


@dataclass(frozen=True, slots=True)
class Bounded(Balanced):
    """A forget loss that stops at ignorance.

    Args:
        margin: log-odds, nats per token, to come down to; 0 is ignorance.
        restore: weight of the way back up; 0 leaves an item alone that is below.
        hold_earlier: have the facts of earlier requests among the forget rows, with a way back up of weight 1 at least:
            what a new request brings back or drives into inversion is moved to ignorance again. When the run ends, the
            facts of its own request alone decide.
    """

    margin: float = 0.0
    restore: float = 0.0
    hold_earlier: bool = True

    def __post_init__(self) -> None:
        require_weights(forget_weight=self.forget_weight, retain_weight=self.retain_weight, restore=self.restore)
        if not math.isfinite(self.margin):
            raise InputError("margin must be a finite number.", f"margin={self.margin}")

    @property
    def holds_earlier(self) -> bool:
        """`hold_earlier`."""
        return self.hold_earlier

    @property
    def comes_back(self) -> bool:
        """With a way back up, yes."""
        return self.restore > 0

    def companions(self, example: Example) -> tuple[str, ...]:
        """Its wrong options; InputError where it has none."""
        if not example.options:
            raise InputError(
                "The bounded objective needs wrong options to meet.",
                f"{example.prompt[:60]!r}",
                'Give each forget item "options", or take npo.',
            )
        return example.options

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """The two hinges."""
        assert start.companions is not None  # `companions` gives each item at least one
        margin = margins(forget, start.companions)
        return bounded_forget(margin, self.margin, self.back_up(start.held), totals.forget_items)

    def back_up(self, held: Bool[Tensor, " items"] | None) -> float | Float[Tensor, " items"]:
        """The weight of the way back up of each row: held ones stay where they are, neither known nor avoided."""
        return self.restore if held is None else torch.where(held, max(self.restore, 1.0), self.restore)
