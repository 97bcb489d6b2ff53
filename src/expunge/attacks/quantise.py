"""Quantisation: round the unlearned weights to a few bits and see whether the forgotten answers come back.

    s = max_g |W| / (2^(bits - 1) - 1),   W <- s round(W / s)           g: `group` neighbouring inputs of one output

Unlearning at a small learning rate moves most weights by less than half of s, so rounding may put back the original
ones (arXiv:2410.16454). Each pair (bits, group) is one trial. Rounded are the weights of all linear maps but
the output head, as bitsandbytes and GPTQ do; embeddings, norms and biases stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.attacks.base import T, Target
from expunge.attacks.trials import Trial, Trials
from expunge.attacks.weights import Weights
from expunge.errors import InputError


@dataclass(frozen=True)
class Quantise(Trials):
    """Round to nearest, symmetric, in groups.

    Args:
        bits: of a weight, 2 to 8; each is tried with each group size.
        groups: inputs that share a scale; a last, smaller group takes what is left.
    """

    bits: tuple[int, ...] = (8, 4)
    groups: tuple[int, ...] = (32, 64, 128)

    name: ClassVar[str] = "quantise"
    summary: ClassVar[str] = "round the weights to 8 and 4 bits, score all forgotten facts"

    def __post_init__(self) -> None:
        if not self.bits or not all(2 <= bits <= 8 for bits in self.bits):
            raise InputError("bits must lie between 2 and 8.", f"{self.name}: bits={self.bits}")
        if not self.groups or min(self.groups) < 1:
            raise InputError("A group must have at least 1 weight.", f"{self.name}: groups={self.groups}")

    def count(self, target: Target[T]) -> int:
        """Pairs of bits and group."""
        return len(self.bits) * len(self.groups)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each pair of bits and group size."""
        for bits, group in product(self.bits, self.groups):
            yield Trial(f"int{bits}, groups of {group}", partial(_rounded_model, target.model, bits, group))


@contextmanager
def _rounded_model(model: PreTrainedModel, bits: int, group: int) -> Iterator[None]:
    quantise(model, bits, group)
    yield


@torch.no_grad()
def quantise(model: PreTrainedModel, bits: int, group: int) -> None:
    """Round the weights of all linear maps of `model` but its head, in place."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.copy_(rounded(module.weight, bits, group))


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [outputs, inputs] on the nearest of 2^bits - 1 levels, equally spaced around 0, in each group."""
    top = 2 ** (bits - 1) - 1
    parts = torch.split(weight, group, dim=1)
    scales = [(part.abs().amax(1, keepdim=True) / top).clamp(min=torch.finfo(weight.dtype).tiny) for part in parts]
    return torch.cat([scale * (part / scale).round() for part, scale in zip(parts, scales, strict=True)], dim=1)
