"""The second moments of what goes into linear maps, one forward after the other, never a list of states.

C = sum_k x_k x_k^T        x_k [d] an input at a position k that predicts a token; C [d, d] in float64
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.unlearning.transforms.maps import LinearMap

if TYPE_CHECKING:
    from expunge.data.collate import Batch


class InputCovariances:
    """C of every map listened to; maps that read the very same tensor share one.

    Args:
        maps: the linear maps to listen to.
    """

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self._maps = maps
        self._sums: dict[str, Tensor] = {}
        self._leader: dict[str, str] = {}
        self._first: dict[str, Tensor] = {}

    @contextmanager
    def of(self, rows: Batch) -> Iterator[None]:
        """A context for one forward of `rows`; padding does not count, nor the last token, which predicts nothing."""
        counted = rows.attention_mask[:, 1:].bool()
        hooks = [m.module.register_forward_pre_hook(partial(self._hear, m.name, counted)) for m in self._maps]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._first.clear()

    def grouped(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Each C with the names of its maps; none if there was no forward."""
        for leader, total in self._sums.items():
            yield tuple(name for name, first in self._leader.items() if first == leader), total

    def _hear(self, name: str, counted: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if name not in self._leader:
            same = [other for other, seen in self._first.items() if seen is x]
            self._leader[name] = same[0] if same else name
            self._first[name] = x
        if self._leader[name] == name:
            states = x.detach()[counted].double()
            total = self._sums.setdefault(name, states.new_zeros(x.shape[-1], x.shape[-1]))
            total.addmm_(states.T, states)


def width_of_input(linear: LinearMap) -> int:
    """The d of its C."""
    return linear.weight.shape[0] if linear.transposed else linear.weight.shape[1]


def passes(maps: Sequence[LinearMap], budget: int) -> Iterator[list[LinearMap]]:
    """`maps` in order, cut where the C of a run of them would take more than `budget` bytes together."""
    run: list[LinearMap] = []
    held = 0
    for linear in maps:
        size = torch.finfo(torch.float64).bits // 8 * width_of_input(linear) ** 2
        if run and held + size > budget:
            yield run
            run, held = [], 0
        run.append(linear)
        held += size
    yield run
