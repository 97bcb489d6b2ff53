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

    _require_known(site.arch, kinds)
    trained = {id(parameter): (name, parameter) for name, parameter in site.parameters.items()}
    chosen = {id(m) for block in site.arch.linears for kind in block.keys() & kinds for m in block[kind].modules()}
    found = tuple(
        LinearMap(name, index, module, weight, transposed=isinstance(module, Conv1D))
        for index, block in enumerate(site.arch.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in trained
        if not kinds or id(module) in chosen
        for name, weight in [trained[id(module.weight)]]
    )
    if not found:
        raise _nothing("no linear map inside the blocks is trained, so there is nothing to penalise", site, kinds)
    return found


def moving_linear_maps(site: Site, kinds: Collection[str] = ()) -> dict[str, nn.Module]:
    """The linear maps of the blocks that hold any trained parameter, adapters included, as "block.kind" -> module.

    The module's output is the map's. `kinds` and errors are those of `trained_linear_maps`.
    """
    _require_known(site.arch, kinds)
    trained = {id(parameter) for parameter in site.parameters.values()}
    found = {
        f"{index}.{kind}": module
        for index, block in enumerate(site.arch.linears)
        for kind, module in block.items()
        if not kinds or kind in kinds
        if any(id(parameter) in trained for parameter in module.parameters())
    }
    if not found:
        raise _nothing("nothing in a linear map of the blocks is trained", site, kinds)
    return found


def _require_known(arch: Architecture, kinds: Collection[str]) -> None:
    for kind in kinds:
        if not any(kind in block for block in arch.linears):
            known = {known for block in arch.linears for known in block}
            raise InputError(f"The blocks have no linear map {kind!r}.", "modules", nearest(kind, known))


def _nothing(what: str, site: Site, kinds: Collection[str]) -> InputError:
    return InputError(
        what,
        ", ".join(kinds) or ", ".join(sorted(site.parameters)[:3]) or "no trained parameter",
        "Train weight matrices of the blocks, or leave this transform out.",
    )
