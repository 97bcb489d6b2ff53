"""What influence is measured on: a function q of what is said to an item, given by its slope.

    probability      q = P                    dq = P ds              the paper's; vanishes where P is near 0 or near 1
    log_probability  q = log P                dq = ds                vanishes where P is near 1
    log_odds         q = log( P / (1 - P) )   dq = ds / (1 - P)      vanishes nowhere
    margin           q = s / T - log mean_o exp( s_o / T_o )         dq = ds / T - sum_o w_o ds_o / T_o

s = log P(y | x) of the whole answer and T its tokens, s_o and T_o those of the wrong options, w = softmax(s_o / T_o).
The odds of `log_odds` are against everything else that could be said; `margin` is the log-odds against the options that
the audit reports and the bounded objective lowers. For it the rows of the options are read beside those of the answers,
and what acts on an item acts through all of its rows. The first three are those of the audit's attribution. Eq. 1 and
13 of arXiv:2509.22263 have the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from expunge.data.collate import Batch, join

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step

Slope = Callable[[Tensor], Tensor]
"""dq/ds of every row from s of all rows, with a graph where s has one."""

_CLOSEST_TO_ONE: Final = -torch.finfo(torch.float32).eps
"""A log P that float32 cannot tell from 0 counts as this."""

SLOPES: Final[dict[str, Slope]] = {
    "probability": torch.exp,
    "log_probability": torch.ones_like,
    "log_odds": lambda log_p: -1 / torch.expm1(log_p.clamp(max=_CLOSEST_TO_ONE)),
}
"""Of those that need no row but the answer's."""

MARGIN: Final = "margin"


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows that q of some items depends on, and its slope."""

    rows: Batch
    slope: Slope


Quantity = Callable[["Step", Batch], Reading]
"""From forget rows to what has to be read."""


def quantity(of: str) -> Quantity:
    """The quantity of that name."""
    return _margin if of == MARGIN else lambda step, rows: Reading(rows, SLOPES[of])


def _margin(step: Step, rows: Batch) -> Reading:
    """The rows, and behind them those of their options."""
    options, owner = step.options(rows)
    both = join(rows, options, pad_id=0)  # masked, so any token will do
    tokens, n = both.answer_mask.sum(1), len(rows)
    own = torch.arange(n, device=owner.device)[:, None] == owner

    def slope(s: Tensor) -> Tensor:
        mean = (s / tokens)[n:]
        weights = torch.where(own, mean, -torch.inf).softmax(1).sum(0)
        return torch.cat([torch.ones_like(s[:n]), -weights]) / tokens

    return Reading(both, slope)
