"""What has influence: a weight, or a neuron. A level gives A of some rows as a differentiable function of the weights.

    parameter    A_j = phi_j g_j,                              g = d/dphi sum_i q_i          arXiv:2509.22263, eq. 12
    neuron       A_n = sum_i min_k h_n[i, k] g_n[i, k],        g = dq_i / dh_n[i, k]         eq. 1, min over positions

phi are the weight matrices of linear maps (under LoRA the adapters), h_n the outputs of those maps, i an example (where
q looks at options, each of its rows), k a position up to the one that predicts the last answer token. The minimum over
k is the influence against the answer that the paper's diagnosis reads.

With `exact`, g depends on the weights too, and dA holds second derivatives; without, g is a constant, as in eq. 14.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data.collate import Batch
from expunge.errors import InputError
from expunge.models.architecture import width
from expunge.unlearning.transforms.attribution_quantities import Quantity, Slope
from expunge.unlearning.transforms.maps import LinearMap

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step

Influence = dict[str, Tensor]
"""A of some rows together, by weight or by linear map."""


class Level(ABC):
    """A of rows at one level.

    Args:
        quantity: what influence is on.
        exact: whether A's graph goes through g.
    """

    def __init__(self, quantity: Quantity, exact: bool) -> None:
        self._quantity, self._exact = quantity, exact

    @abstractmethod
    def influence(self, step: Step, rows: Batch) -> Influence:
        """A of the rows' sum, with its graph."""

    @abstractmethod
    def nothing(self) -> Influence:
        """A of no rows."""

    def _gradient(self, sequence: Tensor, slope: Slope, places: Sequence[Tensor], *, keep: bool) -> tuple[Tensor, ...]:
        """g: d/dplaces of the rows' q; with a graph if `exact`; `keep` leaves the forward's graph alive."""
        slopes = slope(sequence if self._exact else sequence.detach())
        return torch.autograd.grad(
            sequence, places, slopes, create_graph=self._exact, retain_graph=keep or self._exact, materialize_grads=True
        )

    def _kernel(self) -> AbstractContextManager[None]:
        """Attention that can be differentiated twice, if that is wanted: the fused kernels cannot."""
        return sdpa_kernel(SDPBackend.MATH) if self._exact else nullcontext()


class ParameterLevel(Level):
    """A of every entry of the weight matrices of `maps`."""

    def __init__(self, maps: Sequence[LinearMap], quantity: Quantity, exact: bool) -> None:
        super().__init__(quantity, exact)
        self._weights = {m.name: m.weight for m in maps}

    def influence(self, step: Step, rows: Batch) -> Influence:
        """phi * g."""
        read = self._quantity(step, rows)
        with self._kernel():
            sequence = step.answers(read.rows).sequence
        g = self._gradient(sequence, read.slope, list(self._weights.values()), keep=False)
        return {name: weight * x for (name, weight), x in zip(self._weights.items(), g, strict=True)}

    def nothing(self) -> Influence:
        """Zeros."""
        return {name: torch.zeros_like(weight) for name, weight in self._weights.items()}


class NeuronLevel(Level):
    """A of every output of linear maps, given by name; their output must move with the weights."""

    def __init__(self, modules: Mapping[str, nn.Module], quantity: Quantity, exact: bool) -> None:
        super().__init__(quantity, exact)
        self._modules = modules

    def influence(self, step: Step, rows: Batch) -> Influence:
        """The sum over rows of min_k h * g."""
        heard: dict[str, Tensor] = {}
        read = self._quantity(step, rows)
        with self._kernel(), self._listening(heard):
            sequence = step.answers(read.rows).sequence
        g = self._gradient(sequence, read.slope, list(heard.values()), keep=True)
        outside = ~_positions(read.rows)[:, :, None]
        return {
            name: (h * x).masked_fill(outside, torch.inf).amin(1).sum(0)
            for (name, h), x in zip(heard.items(), g, strict=True)
        }

    def nothing(self) -> Influence:
        """Zeros."""
        weights = {name: next(module.parameters()) for name, module in self._modules.items()}
        return {name: weights[name].new_zeros(width(module)) for name, module in self._modules.items()}

    @contextmanager
    def _listening(self, heard: dict[str, Tensor]) -> Iterator[None]:
        """Puts the outputs of the maps in `heard`."""
        with ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.callback(module.register_forward_hook(partial(_hear, heard, name)).remove)
            yield


def _hear(heard: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    if output.ndim != 3:
        raise InputError(
            "a linear map does not keep examples apart: its output is not [batch, positions, width]",
            f"{name}, output of shape {tuple(output.shape)}",
            "Use level=parameter.",
        )
    heard[name] = output


def _positions(rows: Batch) -> Tensor:
    """[B, T - 1] bool: tokens up to the one that predicts the last answer token; later ones cannot act on P."""
    answers_from = rows.answer_mask.flip(1).cumsum(1).flip(1)
    return (answers_from[:, 1:] > 0) & rows.attention_mask[:, :-1].bool()
