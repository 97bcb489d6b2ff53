"""One adapter for each request, every one trained from the same start, all of them fused in closed form (EUL).

    min_W  sum_i |X_i (W - W_i)|^2 + ridge |W - W_0|^2                            arXiv:2310.20150, section 3.3
    W = W_0 + (sum_i G_i + ridge s I)^-1  sum_i G_i (W_i - W_0),        G_i = X_i^T X_i

W_0 [in, out] is a linear map of the start, W_i what the adapter of request i made of it, X_i [tokens, in] its inputs on
that request's forget and retain items. The paper has no ridge; without one the sum of a few requests has no inverse,
and with one that pulls to 0 instead of W_0 everything is lost on which no request has data. s is the mean of the
diagonal, so that `ridge` has no unit. While a request is trained the model is the start with one adapter; only then is
it what all requests made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.models.answers import evaluating
from expunge.models.tensors import load_tensors
from expunge.unlearning.parametrizations.base import Material, Parametrization, Trained
from expunge.unlearning.parametrizations.lora import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START, GRAM, MOVED = "start", "gram", "moved"
"""Of each linear map: W_0, sum_i G_i, and sum_i G_i (W_i - W_0)."""

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class FusedLoRA(Parametrization):
    """Low-rank adapters, fused with those of earlier requests.

    Args:
        rank: of each update.
        alpha: scale; the update counts alpha / rank times.
        ridge: how strongly the start pulls, over the mean energy of the inputs.
        earlier: file that the request before left, or None.
    """

    rank: int = 8
    alpha: float = 16.0
    ridge: float = 1e-3
    earlier: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ridge < float("inf"):
            raise InputError("ridge must be a finite number above 0.", f"ridge={self.ridge}")
        LoRA(self.rank, self.alpha)

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Fused:
        """Adapters on the model of the start, whose weights `model` has from now on, until it is folded."""
        if material is None:
            raise InputError("Adapters are fused by what the data say, and there are none.", "parametrization=fused")
        adapters = LoRA(self.rank, self.alpha)
        linears = adapters.targets(model)
        state = load_tensors(Path(self.earlier)) if self.earlier else {}
        before = {name: _matrix(linear).clone() for name, linear in linears.items()}
        if state and state.keys() != {f"{kind}.{name}" for name in linears for kind in (START, GRAM, MOVED)}:
            raise InputError("These are not the adapters of this model.", f"earlier={self.earlier}")
        for name, linear in linears.items():
            start = state.setdefault(f"{START}.{name}", before[name])
            _matrix(linear).copy_(start)
        return Fused(model, adapters.bind(model, seed), linears, before, state, material, self.ridge)


class Fused(Trained):
    """A model of the start with adapters; fused into the model of all requests by `fold`.

    Args:
        model: the model.
        adapters: what is trained.
        linears: the plain linear maps, by name.
        before: their weights [in, out] when the request came in.
        state: what earlier requests left.
        material: the items whose states count.
        ridge: see `FusedLoRA`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: Trained,
        linears: Mapping[str, nn.Module],
        before: Mapping[str, Tensor],
        state: State,
        material: Material,
        ridge: float,
    ) -> None:
        self.parameters = adapters.parameters
        self._model, self._adapters, self._linears, self._last = model, adapters, linears, before
        self._state, self._material, self._ridge = state, material, ridge
        self._fused = False

    def carried(self) -> Mapping[str, Tensor]:
        """The state with this request in it; nothing if no step was made and none before."""
        return self._state if f"{GRAM}.{next(iter(self._linears))}" in self._state else {}

    @torch.no_grad()
    def fold(self) -> None:
        """Fuse, or put the weights back that were there if no step was made."""
        begun = any(p.any() for name, p in self.parameters.items() if ".lora_B." in name)
        self._adapters.fold()
        if self._fused:
            return
        self._fused = True
        if begun:
            grams = self._grams()
            for name, linear in self._linears.items():
                self._fuse(name, _matrix(linear), grams[name])
        else:
            for name, linear in self._linears.items():
                _matrix(linear).copy_(self._last[name])

    def _fuse(self, name: str, weight: Float[Tensor, "i o"], gram: Float[Tensor, "i i"]) -> None:
        start = self._state[f"{START}.{name}"].to(weight.device)
        for kind, own in ((GRAM, gram), (MOVED, gram @ (weight - start).double())):
            key = f"{kind}.{name}"
            self._state[key] = own + self._state[key].to(own) if key in self._state else own
        weight.copy_(start + fuse(self._state[f"{GRAM}.{name}"], self._state[f"{MOVED}.{name}"], self._ridge))

    def _grams(self) -> dict[str, Tensor]:
        """X^T X of every linear map on the forget and retain items, in the model that this request made."""
        material = self._material
        found: dict[str, Tensor] = {}
        with evaluating(self._model):
            for batch in material.batches([*material.forget, *material.retain]):
                moved = batch.to(self._model.device)
                with ExitStack() as hooks:
                    for name, linear in self._linears.items():
                        gather = partial(_gather, found, name, moved.attention_mask.bool())
                        hooks.callback(linear.register_forward_pre_hook(gather).remove)
                    self._model(input_ids=moved.input_ids, use_cache=False)
        return found


def fuse(gram: Float[Tensor, "i i"], moved: Float[Tensor, "i o"], ridge: float) -> Float[Tensor, "i o"]:
    """W - W_0: (G + ridge s I)^-1 M."""
    scale = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(gram + scale * eye, moved)
    return solved


def _gather(found: State, name: str, real: Tensor, module: nn.Module, args: tuple[Any, ...]) -> None:
    states = args[0][real].double()
    found[name] = found.get(name, 0) + states.T @ states


def _matrix(linear: nn.Module) -> Float[Tensor, "i o"]:
    """The weight as a map of rows, x -> x W, whichever way the module keeps it; a view."""
    assert isinstance(linear.weight, Tensor)
    return linear.weight.data.T if isinstance(linear, nn.Linear) else linear.weight.data
