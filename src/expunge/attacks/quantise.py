"""Quantisation: round the unlearned weights to a few bits and see whether the forgotten answers come back.

    s = max_g |W|,   W <- s * (the level nearest to W / s)              g: `group` neighbouring inputs of one output
    levels of int    k / (2^(bits - 1) - 1),   k whole
    levels of NF4    16 quantiles of a normal distribution, 0 among them (arXiv:2305.14314, appendix E)

Unlearning at a small learning rate moves most weights by less than half the distance of two levels, so rounding may put
back the original ones (arXiv:2410.16454). Each pair (format, group) is one trial. Rounded are the weights of all linear
maps but the output head, as bitsandbytes and GPTQ do; embeddings, norms and biases stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.base import T, Target
from expunge.attacks.matrices import InnerMap, changed
from expunge.attacks.trials import Trial, Wear
from expunge.attacks.weights import Weights
from expunge.errors import InputError

NF4: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The levels of NF4, ascending, as its authors' code has them."""

Snap = Callable[[Tensor], Tensor]
"""Moves weights [outputs, inputs] to the nearest levels, with one scale for each row."""


@dataclass(frozen=True)
class Quantise(Wear):
    """Round to nearest, in groups.

    Args:
        bits: of a weight with equally spaced levels, 2 to 8; each is tried with each group size.
        groups: inputs that share a scale; a last, smaller group takes what is left.
        nf4: group sizes of NF4, whose 4 bits lie at the quantiles of a normal distribution; none where empty.
    """

    bits: tuple[int, ...] = (8, 4)
    groups: tuple[int, ...] = (32, 64, 128)
    nf4: tuple[int, ...] = (64,)

    name: ClassVar[str] = "quantise"
    summary: ClassVar[str] = "round the weights to 8 and 4 bits, score all forgotten facts"

    def __post_init__(self) -> None:
        where = f"{self.name}: bits={self.bits}, groups={self.groups}, nf4={self.nf4}"
        if not all(2 <= bits <= 8 for bits in self.bits):
            raise InputError("bits must lie between 2 and 8.", where)
        if min((*self.groups, *self.nf4, 1)) < 1:
            raise InputError("A group must have at least 1 weight.", where)
        if not self.nf4 and not (self.bits and self.groups):
            raise InputError("There is no format to round to.", where, "Give bits and groups, or nf4.")

    def count(self, target: Target[T]) -> int:
        """Pairs of format and group."""
        return len(self.bits) * len(self.groups) + len(self.nf4)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each pair of format and group size."""
        formats: list[tuple[str, Snap, int]] = [
            (f"int{bits}", partial(integers, bits=bits), group) for bits, group in product(self.bits, self.groups)
        ]
        formats += [("NF4", normal_floats, group) for group in self.nf4]
        for called, snap, group in formats:
            yield Trial(f"{called}, groups of {group}", partial(changed, target.model, partial(_rounded, snap, group)))


def rounded(weight: Float[Tensor, "outputs inputs"], snap: Snap, group: int) -> Float[Tensor, "outputs inputs"]:
    """`weight` with one scale for each `group` neighbouring inputs of one output."""
    return torch.cat([snap(part) for part in torch.split(weight, group, dim=1)], dim=1)


def integers(weight: Float[Tensor, "outputs inputs"], bits: int) -> Float[Tensor, "outputs inputs"]:
    """The nearest of 2^bits - 1 levels, equally spaced around 0, in each row."""
    top = 2 ** (bits - 1) - 1
    scale: Tensor = (weight.abs().amax(1, keepdim=True) / top).clamp(min=torch.finfo(weight.dtype).tiny)
    return scale * (weight / scale).round()


def normal_floats(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """The nearest of the levels of NF4 in each row."""
    scale: Tensor = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    levels = torch.tensor(NF4, dtype=weight.dtype, device=weight.device)
    nearest = torch.bucketize((weight / scale).contiguous(), (levels[1:] + levels[:-1]) / 2)
    return scale * levels[nearest]


def _rounded(snap: Snap, group: int, each: InnerMap) -> Tensor:
    return rounded(each.matrix, snap, group)
