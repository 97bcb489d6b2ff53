"""A push on hidden states that is led up a slope, step by step, and stays in a ball.

delta <- P( delta + step g / ||g|| ),      P onto the ball of `radius`, all numbers of delta together
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Push = Float[Tensor, "*shape"]


def ascended(delta: Push, slope: Push, step: float, radius: float) -> Push:
    """`delta` after a step of length `step` up the slope, back in the ball of `radius`; a slope of zero is no step."""
    tiny = torch.finfo(delta.dtype).tiny
    moved = delta + step * slope / slope.norm().clamp(min=tiny)
    inside: Tensor = moved * (radius / moved.norm().clamp(min=tiny)).clamp(max=1)
    return inside
