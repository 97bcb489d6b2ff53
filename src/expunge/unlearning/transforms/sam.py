"""Sharpness-aware minimization of the forget loss: its gradient is taken where it is worst nearby.

    e = rho * grad L_f(theta) / || grad L_f(theta) ||
    g = grad L_f(theta + e) + grad L_r(theta)                                               arXiv:2502.05374

So the answer stays forgotten when the weights are moved a little in the direction that brings it back the fastest.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import get_total_norm

from expunge.errors import InputError
from expunge.unlearning.objectives.base import Share
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step

_log = logging.getLogger(__name__)

FORGET, RETAIN = Share(1.0, 0.0), Share(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class SAM(GradientTransform):
    """SAM on the forget side; costs another forward and backward of it, and a copy of the trained parameters.

    Args:
        rho: radius in the 2-norm of all trained parameters together.
    """

    rho: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise InputError("rho must be a finite number of at least 0.", f"rho={self.rho}")

    def bind(self, site: Site) -> BoundSAM:
        """SAM at work; a warning where the weights have too few digits for it."""
        if any(torch.finfo(p.dtype).bits < 32 for p in site.parameters.values()):
            _log.warning(
                "SAM moves each weight by far less than the digits of its dtype can tell, so most do not move at all "
                "(rho = %g): train in float32, or leave SAM out.",
                self.rho,
            )
        return BoundSAM(self.rho, site)


class BoundSAM(BoundTransform):
    """Climbs, takes the forget gradient, and puts the very same weights back."""

    def __init__(self, rho: float, site: Site) -> None:
        self._rho, self._site = rho, site

    @torch.no_grad()
    def gradient(self, step: Step) -> dict[str, float]:
        """g, and the norm of the forget gradient at theta."""
        parameters = list(self._site.parameters.values())
        with torch.enable_grad():
            step.add(FORGET)
        gradients = {p: self._site.reduce(p.grad) for p in parameters if p.grad is not None}
        norm = get_total_norm(list(gradients.values()))
        here = [p.data for p in parameters]
        # New tensors rather than e added and taken off again, which would not give back the same bits.
        for p, gradient in gradients.items():
            p.data = p.data + self._rho / norm.clamp(min=torch.finfo(norm.dtype).tiny) * gradient
            p.grad = None
        try:
            with torch.enable_grad():
                step.add(FORGET)
        finally:
            for p, data in zip(parameters, here, strict=True):
                p.data = data
        with torch.enable_grad():
            step.add(RETAIN)
        return {"sam_forget_norm": float(norm)}
