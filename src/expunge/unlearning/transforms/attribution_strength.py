"""How strong the penalty is: lambda itself, or a ratio of gradient norms; either may be adapted as the run goes.

    absolute    c_t = m_t strength                                       lambda of arXiv:2509.22263, eq. 3
    relative    c_t = m_t strength ||dL|| / ||d penalty||                at c = 1; lambda's scale drops out
    m_t = m_{t-1} clip(growth_t / target, 1/2, 2),    m_0 = 1            with a target, else 1
    growth_t = sum [A_t < 0] max(A_ref - A_t, 0) / sum max(-A_ref, 0)

The norms are over the parameters that the penalty moves. growth is the share by which negative influence has grown
against the reference: with a target the penalty holds on as hard as it must, and no harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_FASTEST: Final = 2.0
"""Factor by which one step may change the multiplier."""
_FARTHEST: Final = 2.0**20
"""The multiplier stays below this, and above its inverse."""


@dataclass(slots=True)
class Strength:
    """c_t, and the multiplier that is adapted.

    Args:
        value: the setting.
        relative: whether it is a ratio of norms.
        target: growth of negative influence per comparison; None adapts nothing.
        multiplier: m_t.
    """

    value: float
    relative: bool
    target: float | None = None
    multiplier: float = 1.0

    def factor(self, loss: float, penalty: float) -> float:
        """c_t, from the norms of the loss's gradient and of the penalty's at c = 1."""
        now = self.value * self.multiplier
        if not self.relative:
            return now
        return now * loss / penalty if penalty else 0.0

    def adapt(self, growth: float, negative: float) -> None:
        """m_t, from the two sums of growth_t; without negative influence m stays."""
        if self.target is None or not negative:
            return
        change = min(max(growth / negative / self.target, 1 / _FASTEST), _FASTEST)
        self.multiplier = min(max(self.multiplier * change, 1 / _FARTHEST), _FARTHEST)

    def state(self) -> dict[str, Tensor]:
        """m_t."""
        return {"multiplier": torch.tensor(self.multiplier, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """m_t."""
        self.multiplier = float(state["multiplier"])


def measuring(steps: int, every: int) -> bool:
    """Whether the step after `steps` others is one whose penalty is measured: the second, and each `every` later."""
    return steps > 0 and (steps - 1) % every == 0
