"""A LoRA of its own for a simulated attacker, beside the model and not in it.

out + scale * (x A^T) B^T,      A [rank, in] uniform as in arXiv:2106.09685's code, B [out, rank] = 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from expunge.unlearning.transforms.maps import LinearMap


class Adapters:
    """Low-rank updates of linear maps, there only inside `active`; the model's modules and weights stay as they are.

    Args:
        maps: what is adapted.
        rank: of each update.
        scale: what each update is multiplied by.
        seed: of the A's.
    """

    def __init__(self, maps: Sequence[LinearMap], rank: int, scale: float, seed: int) -> None:
        self._maps, self._scale = maps, scale
        draw = torch.Generator().manual_seed(seed)
        self._inward, self._outward = zip(*(_fresh(m, rank, draw) for m in maps), strict=True)

    @property
    def parameters(self) -> list[Tensor]:
        """The A's, then the B's."""
        return [*self._inward, *self._outward]

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the maps give their adapted outputs."""
        adapted = zip(self._maps, self._inward, self._outward, strict=True)
        hooks = [m.module.register_forward_hook(partial(self._adapt, a, b)) for m, a, b in adapted]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def move(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step of gradient ascent."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.add_(gradient, alpha=rate)

    def _adapt(self, a: Tensor, b: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self._scale * (inputs[0] @ a.T) @ b.T


def _fresh(linear: LinearMap, rank: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = linear.weight.T if linear.transposed else linear.weight
    out, width = weight.shape
    a = (torch.rand(rank, width, generator=draw, dtype=torch.float64) * 2 - 1) / math.sqrt(width)
    return a.to(weight).requires_grad_(), torch.zeros(out, rank).to(weight).requires_grad_()
