"""What the comparisons of one step add up to.

sum_u D_u^2,    sum_u [A_u < 0] max(A_ref,u - A_u, 0),    sum_u max(-A_ref,u, 0)
G = -2 sum_u <D_u, dA_u/dtheta>                                       the penalty's gradient at strength 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.unlearning.transforms.attribution_drops import drop
from expunge.unlearning.transforms.attribution_levels import Influence


@dataclass(slots=True)
class Tally:
    """The sums of this process so far.

    Args:
        gradient: G by parameter, of those that have one.
        squares: the first sum.
        growth: the second.
        negative: the third.
    """

    gradient: dict[str, Tensor] = field(default_factory=dict)
    squares: float = 0.0
    growth: float = 0.0
    negative: float = 0.0

    def count(self, now: Influence, before: Influence, drops: Influence, weight: float) -> None:
        """Add a unit's part of the three sums, times `weight`."""
        for name, a in now.items():
            self.squares += weight * float(drops[name].square().sum(dtype=torch.float64))
            self.growth += weight * float(drop(a, before[name]).clamp_(min=0).sum(dtype=torch.float64))
            self.negative -= weight * float(before[name].clamp(max=0).sum(dtype=torch.float64))

    def pull(self, influence: Influence, push: Influence, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of <push, influence>."""
        pushed = [push[name] for name in influence]
        found = torch.autograd.grad(list(influence.values()), list(parameters.values()), pushed, allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                self.gradient[name] = self.gradient[name].add_(gradient) if name in self.gradient else gradient
