"""How a change of negative influence is penalised, elementwise.

    D = [A < 0] (A_ref - A)                     symmetric: eq. 3 of arXiv:2509.22263, I- = { A < 0 }
    D = [A < 0] max(A_ref - A, 0)               hinge: growth of negative influence alone, as the D- of its diagnosis
    penalty = strength * sum D^2,    d penalty / dA = -2 strength D

The symmetric form also resists the *shrinking* of negative influence, that is, the removal of a suppressor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Cut = Callable[[Tensor], Tensor]
"""What is left of a drop [A < 0] (A_ref - A); works in place."""

CUTS: Final[dict[str, Cut]] = {"symmetric": lambda drop: drop, "hinge": lambda drop: drop.clamp_(min=0)}


def drop(now: Tensor, before: Tensor) -> Tensor:
    """[A < 0] (A_ref - A), a new tensor."""
    return torch.where(now < 0, before - now, 0)


def negative_drop(weight: Tensor, gradient: Tensor, previous: Tensor, *, out: Tensor) -> Tensor:
    """`out` becomes [A < 0] (A_prev - A) with A = weight * gradient, and `previous` turns from A_prev into A.

    All of one shape; three passes and no temporary. The penalty is `strength * sum(out^2)`, its gradient by eq. 14
    `-2 * strength * out * gradient`.
    """
    torch.addcmul(previous, weight, gradient, value=-1, out=out)
    torch.mul(weight, gradient, out=previous)
    # The gradient of clamp(A, -inf, 0) is "pass where A < 0", and unlike a comparison it needs no mask tensor.
    torch.ops.aten.hardtanh_backward.grad_input(out, previous, -math.inf, 0.0, grad_input=out)
    return out
