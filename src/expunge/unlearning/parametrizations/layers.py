"""Chosen linear maps or parameters of chosen blocks are trained, as RMU does with the down projections of three."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from expunge.errors import InputError, nearest
from expunge.models.architecture import Architecture, describe
from expunge.unlearning.parametrizations.base import Material, Parametrization, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Layers(Parametrization):
    """Parameters of the blocks `layers` that one of `modules` names.

    Args:
        modules: short names of linear maps ("q", "down", as in `architecture.MODULES`) or names inside a block, whole
            or as a pattern ("mlp.down_proj", "mlp.*", "*.weight").
        layers: indices of blocks; negative ones count from the end; empty for all blocks.
    """

    modules: tuple[str, ...] = ("down",)
    layers: tuple[int, ...] = ()

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Trained:
        """The named parameters; `seed` and `material` are not used. InputError names what is not there."""
        arch = describe(model)
        blocks = chosen_blocks(arch, self.layers)
        chosen = {id(p) for pattern in self.modules for p in _matching(arch, blocks, pattern)}
        return Trained(model, (name for name, p in model.named_parameters() if id(p) in chosen))


def chosen_blocks(arch: Architecture, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Indices from 0 of the blocks that `layers` names, all if it is empty; InputError for one that is not there."""
    n = len(arch.blocks)
    for layer in layers:
        if not -n <= layer < n:
            raise InputError(f"The model has no block {layer}.", f"layers={list(layers)}", f"It has 0 to {n - 1}.")
    return tuple(sorted({layer % n for layer in layers})) or tuple(range(n))


def _matching(arch: Architecture, blocks: tuple[int, ...], pattern: str) -> list[nn.Parameter]:
    found = [p for block in blocks for p in _in_block(arch.blocks[block], arch.linears[block], pattern)]
    if not found:
        inside = {name.rpartition(".")[0] for name, _ in arch.blocks[blocks[0]].named_parameters()}
        raise InputError(
            f"No parameter of the blocks is called {pattern!r}.",
            f"modules, blocks {list(blocks)}",
            nearest(pattern, inside | set(arch.linears[blocks[0]])),
        )
    return found


def _in_block(block: nn.Module, linears: dict[str, nn.Module], pattern: str) -> Iterator[nn.Parameter]:
    if pattern in linears:
        yield from linears[pattern].parameters()
        return
    for name, parameter in block.named_parameters():
        if fnmatchcase(name, pattern) or name.startswith(pattern + "."):
            yield parameter
