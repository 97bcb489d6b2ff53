"""The linear maps of the blocks whose weight matrices are being trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from expunge.errors import InputError

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Site


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """A module of block `block` computing `x @ W.T` (nn.Linear) or `x @ W` (`transposed`: the Conv1D of GPT-2)."""

    name: str
    block: int
    module: nn.Module
    weight: nn.Parameter
    transposed: bool


def trained_linear_maps(site: Site) -> tuple[LinearMap, ...]:
    """The linear maps inside the blocks whose weight is a trained parameter, in the order of the blocks.

    With LoRA these are the adapters' own `lora_A` and `lora_B`. Embeddings, norms, biases and the head are not among
    them. Raises `InputError` where there is none.
    """
    from transformers.pytorch_utils import Conv1D

    trained = {id(parameter): (name, parameter) for name, parameter in site.parameters.items()}
    found = tuple(
        LinearMap(name, index, module, weight, transposed=isinstance(module, Conv1D))
        for index, block in enumerate(site.arch.blocks)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in trained
        for name, weight in [trained[id(module.weight)]]
    )
    if not found:
        raise InputError(
            "no linear map inside the blocks is trained, so there is nothing to penalise",
            ", ".join(sorted(site.parameters)[:3]) or "no trained parameter",
            "Train weight matrices of the blocks, or leave this transform out.",
        )
    return found
