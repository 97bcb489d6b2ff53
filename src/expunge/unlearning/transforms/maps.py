"""The linear maps of the blocks whose weight matrices are being trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from expunge.errors import InputError, nearest

if TYPE_CHECKING:
    from expunge.models.architecture import Architecture
    from expunge.unlearning.transforms.base import Site


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """A module of block `block` computing `x @ W.T` (nn.Linear) or `x @ W` (`transposed`: the Conv1D of GPT-2)."""

    name: str
    block: int
    module: nn.Module
    weight: nn.Parameter
    transposed: bool


def trained_linear_maps(site: Site, kinds: Collection[str] = ()) -> tuple[LinearMap, ...]:
    """The linear maps inside the blocks whose weight is a trained parameter, in the order of the blocks.

    With LoRA these are the adapters' own `lora_A` and `lora_B`. Embeddings, norms, biases and the head are not among
    them. `kinds` are short names as in `Architecture.linears`; with them only maps of these, or adapters around them.

    Raises:
        InputError: there is none, or no linear map has such a short name.
    """
    from transformers.pytorch_utils import Conv1D

    trained = {id(parameter): (name, parameter) for name, parameter in site.parameters.items()}
    chosen = {id(m) for places in _by_kind(site.arch, kinds) for m in places.modules()} if kinds else None
    found = tuple(
        LinearMap(name, index, module, weight, transposed=isinstance(module, Conv1D))
        for index, block in enumerate(site.arch.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in trained
        if chosen is None or id(module) in chosen
        for name, weight in [trained[id(module.weight)]]
    )
    if not found:
        raise InputError(
            "no linear map inside the blocks is trained, so there is nothing to penalise",
            ", ".join(kinds) or ", ".join(sorted(site.parameters)[:3]) or "no trained parameter",
            "Train weight matrices of the blocks, or leave this transform out.",
        )
    return found


def _by_kind(arch: Architecture, kinds: Collection[str]) -> list[nn.Module]:
    """The linear maps with these short names, in whatever adapters are around them."""
    known = {kind for block in arch.linears for kind in block}
    for kind in kinds:
        if kind not in known:
            raise InputError(f"The blocks have no linear map {kind!r}.", "modules", nearest(kind, known))
    return [module for block in arch.linears for kind, module in block.items() if kind in kinds]
