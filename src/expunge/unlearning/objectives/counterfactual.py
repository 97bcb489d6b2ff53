"""Down to what the model says of a subject that it cannot know, and only for the subjects that must go.

    m_i   log-odds of item i against its options, as in `bounded`
    m'_i  the same for its twins (`expunge.data.twins`: an invented subject in its place) in the untouched model, meaned
    c     clamp(mean_i m'_i, -within, within) - mean_i m'_i
    d_i   mean_t log P(y_it | x'_i, y_i<t) - mean_t log P_start(y_it | x'_i, y_i<t)     x'_i: the twin whose turn it is
    L_f = (1/n) sum_i [ max(0, m_i - m'_i - c) + restore max(0, m'_i + c - m_i) + hold max(0, |d_i| - slack) ]
    L   = forget_weight L_f + retain_weight CE(r)         slack: by which two forwards of one row may differ

With `options`, d_i is every other time that of a wrong option: its mean log-probability after the item's own prompt,
from what was said of it after the twins' prompts (`unlearning.anchors`).

A loss that only pushes an answer down can be met by a dislike of this answer, whomever one asks about: the fact stays,
and with it the answer's lead over the same answer about an invented subject. The hold shuts this way out, since the
twins must say what they said. The goal m'_i + c is what wording and answers alone suggest, all moved together so that
their mean is about 0, where every method stops. An item without a fair twin goes to the mean of the others.

It resembles the generic predictions of arXiv:2310.02238 (an anchor term replaced by another, and what the model then
says as target) with a bound instead of a target distribution, and a hold instead of retain data alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jaxtyping import Float
from torch import Tensor

from expunge.errors import InputError, InternalError
from expunge.unlearning.objectives.base import StartValues, Totals, require_weights
from expunge.unlearning.objectives.bounded import Bounded, bounded_forget, margins

if TYPE_CHECKING:
    from expunge.models.answers import Answers


SLACK: Final = 1e-4
"""Nats per token. d_i begins at 0, where the slope of |d_i| is the sign of what batch shapes do to the last bits."""


@dataclass(frozen=True, slots=True)
class Counterfactual(Bounded):
    """A forget loss that stops at what is said of invented subjects, and holds that.

    Args:
        margin: moves all goals, nats per token; 0 is ignorance.
        restore: weight of the way back up.
        hold: weight of |d_i|, which counts from 1e-4 nats per token on.
        names: invented subjects for each forget item, met in turn.
        options: wrong options of each item that are held too, every other turn: d_i is then how far what is said of an
            option has moved from what was said of it about the twins. Where answers are sentences that share words with
            their options, both would fall together, and m_i, their difference, would not tell.
        within: how far the mean of the goals may lie from `margin`, nats per token.
    """

    restore: float = 1.0
    hold: float = 1.0
    names: int = 4
    options: int = 0
    within: float = 0.2

    def __post_init__(self) -> None:
        Bounded.__post_init__(self)
        require_weights(hold=self.hold, within=self.within)
        if self.names < 1 or self.options < 0:
            wrong = f"names={self.names}, options={self.options}"
            raise InputError("names must be at least 1, and options 0.", wrong)

    @property
    def twins(self) -> int:
        """`names`."""
        return self.names

    @property
    def held_options(self) -> int:
        """`options`."""
        return self.options

    def goals(self, twins: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """m'_i + c."""
        mean = twins.mean()
        return twins + mean.clamp(-self.within, self.within) - mean

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """The two hinges."""
        if start.companions is None or start.goals is None:
            raise InternalError("The counterfactual objective needs options, and the twins' log-odds at the start.")
        beyond = margins(forget, start.companions) - start.goals
        return bounded_forget(beyond, self.margin, self.back_up(start.held), totals.forget_items)

    def anchor_loss(self, anchors: Answers, kept: Float[Tensor, " rows"], totals: Totals) -> Float[Tensor, ""]:
        """(hold / n) sum_i max(0, |d_i| - slack)."""
        moved = (anchors.sequence - kept) / anchors.counts.clamp(min=1)
        return self.hold * (moved.abs() - SLACK).clamp(min=0).sum() / max(totals.forget_items, 1)
