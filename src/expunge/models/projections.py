"""Rows of orthogonal projections: on disk, and in models whose blocks give their outputs without what the rows span.

    h <- h - (h Q^T) Q                        Q [r, d]: orthonormal rows of one block, `block.7` in a safetensors file

A projection of an MLP's output is folded into its weights, and its rows lie beside the run for the next request. One of
a whole block's output cannot be folded: the rows stay in the model, as a hook and in the file `FILE` of its folder, and
whoever loads that folder with something else than `load_model` gets the model without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.models.architecture import describe, with_states
from expunge.models.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE: Final = "projections.safetensors"
_NAME: Final = "kept_projection"


def project(states: Float[Tensor, "*n d"], rows: Float[Tensor, "r d"]) -> Float[Tensor, "*n d"]:
    """x - (x Q^T) Q for every row x of `states`: what is left outside the span of the orthonormal `rows`.

    Computed in the wider dtype of the two, given in that of the states.
    """
    wide = torch.promote_types(states.dtype, rows.dtype)
    x, q = states.to(wide), rows.to(wide)
    return (x - (x @ q.T) @ q).to(states.dtype)


class Hooked(nn.Module):
    """A projection that stays in the model; its rows are no parameters, so that no training moves them.

    Args:
        block: index of the block.
        rows: Q, in at least fp32.
    """

    rows: Tensor

    def __init__(self, block: int, rows: Float[Tensor, "r d"]) -> None:
        super().__init__()
        self.block, self.lifted = block, False
        self.register_buffer("rows", rows.detach().clone(), persistent=False)

    def forward(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The states without what Q spans, or, while it is lifted, the states themselves."""
        return hidden if self.lifted else project(hidden, self.rows)


def attach(model: PreTrainedModel, rows: Mapping[int, Float[Tensor, "r d"]]) -> None:
    """Make blocks of `model` give their outputs without what `rows` span; earlier rows of theirs are replaced."""
    blocks = describe(model).blocks
    for block, value in rows.items():
        module = blocks[block]
        detach(module)
        like = next(module.parameters())
        hooked = Hooked(block, value.to(like.device))
        module.add_module(_NAME, hooked)
        hooked.handle = module.register_forward_hook(through(_NAME))  # type: ignore[assignment]


def detach(module: nn.Module) -> None:
    """Take the projection, if there is one, out of one block."""
    hooked = module._modules.get(_NAME)
    if isinstance(hooked, Hooked):
        hooked.handle.remove()  # type: ignore[operator, union-attr]
        delattr(module, _NAME)


def attached(model: nn.Module) -> dict[int, Tensor]:
    """The rows of the projections that stay in `model`, by block; none in an ordinary model."""
    return {module.block: module.rows for module in model.modules() if isinstance(module, Hooked)}


@contextmanager
def lifted(model: nn.Module, blocks: Collection[int]) -> Iterator[None]:
    """Inside, `model` gives what it would give if the projections of these blocks were deleted."""
    chosen = [each for each in model.modules() if isinstance(each, Hooked) and each.block in blocks]
    for each in chosen:
        each.lifted = True
    try:
        yield
    finally:
        for each in chosen:
            each.lifted = False


def through(name: str) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that sends a module's output, or the first of several, through its child `name`."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return with_states(out, module.get_submodule(name))

    return hook


def named_rows(rows: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Rows under the names that they have on disk."""
    return {f"block.{block}": value for block, value in rows.items()}


def save_rows(path: Path, rows: Mapping[int, Tensor]) -> None:
    """Write rows by the index of their block, as `save_tensors` does."""
    save_tensors(path, named_rows(rows))


def load_rows(path: Path) -> dict[int, Tensor]:
    """The rows by the index of their block; InputError for a file that is absent or something else."""
    tensors = load_tensors(path)
    found: dict[int, Tensor] = {}
    for name, value in tensors.items():
        key = re.fullmatch(r"block\.(\d+)", name)
        if key is None or value.ndim != 2:
            raise InputError("This is no file of a projection's rows.", f"{path}: {name} {list(value.shape)}")
        found[int(key[1])] = value
    return found
