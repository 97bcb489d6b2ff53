"""The matrices that an attack rounds or cuts down: those of all linear maps inside a model, its head left out.

Embeddings, norms and biases are not among them, nor the experts of a mixture that share one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from expunge.errors import InputError


@dataclass(frozen=True, eq=False)
class InnerMap:
    """One linear map, by its name in the model."""

    name: str
    module: nn.Linear | Conv1D

    @property
    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Its weight, to be written into; the Conv1D of GPT-2 keeps its own the other way round."""
        weight = self.module.weight
        return weight.T if isinstance(self.module, Conv1D) else weight


def inner_maps(model: PreTrainedModel) -> tuple[InnerMap, ...]:
    """Every linear map of `model` but its head, in the order of the modules.

    Raises:
        InputError: there is none.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = tuple(
        InnerMap(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    if not found:
        raise InputError("This model has no linear map to change.", type(model).__name__, "Leave this attack out.")
    return found


@contextmanager
def changed(model: PreTrainedModel, change: Callable[[InnerMap], Tensor]) -> Iterator[None]:
    """Inside, and until someone puts the weights back, each matrix is what `change` makes of its map."""
    with torch.no_grad():
        for each in inner_maps(model):
            each.matrix.copy_(change(each))
    yield
