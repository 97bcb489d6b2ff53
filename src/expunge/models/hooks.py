"""Hooks on the places of a model: look at activations, or put others there; gone when the block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from expunge.models.architecture import Architecture, with_states

Place = tuple[int, str]
"""A block, and a map in it: the input of `down`, the output of every other; or `RESIDUAL`, the block's own output."""

Values = dict[Place, Tensor]

RESIDUAL: Final = "residual"


@contextmanager
def recording(arch: Architecture, places: Sequence[Place]) -> Iterator[Values]:
    """Inside, a forward leaves the activations of `places` in the dict."""
    seen: Values = {}

    def keep(place: Place, value: Tensor) -> Tensor:
        seen[place] = value
        return value

    with hooked(arch, {place: partial(keep, place) for place in places}):
        yield seen


@contextmanager
def replacing(arch: Architecture, values: Values, where: Tensor | None = None) -> Iterator[None]:
    """Inside, a forward has `values` in the places of its own activations; only at the positions `where`, if given."""

    def put(new: Tensor, own: Tensor) -> Tensor:
        placed = new.to(own)
        return placed if where is None else torch.where(where[..., None], placed, own)

    with hooked(arch, {place: partial(put, value) for place, value in values.items()}):
        yield


@contextmanager
def hooked(arch: Architecture, changes: dict[Place, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, each place's activation goes through its function."""

    def inward(change: Callable[[Tensor], Tensor], module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return change(inputs[0]), *inputs[1:]

    def outward(change: Callable[[Tensor], Tensor], module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return with_states(output, change)

    with ExitStack() as hooks:
        for (block, name), change in changes.items():
            module = arch.blocks[block] if name == RESIDUAL else arch.linears[block][name]
            handle = (
                module.register_forward_pre_hook(partial(inward, change))
                if name == "down"
                else module.register_forward_hook(partial(outward, change))
            )
            hooks.callback(handle.remove)
        yield
