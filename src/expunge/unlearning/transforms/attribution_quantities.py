"""What influence is measured on: a function q of s = log P(y | x), given by its slope.

    probability      q = P                    dq = P ds              the paper's; vanishes where P is near 0 or near 1
    log_probability  q = log P                dq = ds                vanishes where P is near 1
    log_odds         q = log( P / (1 - P) )   dq = ds / (1 - P)      vanishes nowhere

P is that of the whole answer, and the odds are against everything else that could be said: the rows of a training step
hold no options. The same three as in the audit's attribution. Eq. 1 and 13 of arXiv:2509.22263 have the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]
"""dq/ds from s, elementwise, with a graph where s has one."""

_CLOSEST_TO_ONE: Final = -torch.finfo(torch.float32).eps
"""A log P that float32 cannot tell from 0 counts as this."""

QUANTITIES: Final[dict[str, Slope]] = {
    "probability": torch.exp,
    "log_probability": torch.ones_like,
    "log_odds": lambda log_p: -1 / torch.expm1(log_p.clamp(max=_CLOSEST_TO_ONE)),
}
