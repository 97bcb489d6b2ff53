"""Lend a model to an attack and take it back bit-equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """The untouched weights, on the CPU, of a model that is being attacked."""

    model: nn.Module
    saved: dict[str, Tensor]

    def restore(self) -> None:
        """Put the untouched values back, in whatever dtype the model has now, and drop all gradients."""
        with torch.no_grad():
            for name, tensor in _tensors(self.model).items():
                tensor.copy_(self.saved[name])
        self.model.zero_grad(set_to_none=True)

    def digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.saved.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@contextmanager
def lent(model: nn.Module) -> Iterator[Weights]:
    """Inside, every parameter can be trained, in fp32 at least and without dropout; afterwards all is as it was.

    fp32 because a step of 1e-5 is lost to rounding in bf16, and an attack that cannot move the weights proves nothing.
    Costs one copy of the model in memory.
    """
    saved = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(model).items()}
    weights = Weights(model, saved)
    training = [module for module in model.modules() if module.training]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for tensor in _tensors(model).values():
            tensor.data = tensor.data.to(_at_least_single(tensor.dtype))
        model.requires_grad_(True).eval()
        yield weights
    finally:
        for module in training:
            module.training = True
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        for name, tensor in _tensors(model).items():
            tensor.data = tensor.data.to(saved[name].dtype)
        weights.restore()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
