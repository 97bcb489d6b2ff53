"""Ablation of single neurons: whether those that a diagnostic points at do what it says.

    h_i  <-  h_i of another model on the same input      or      h_i  <-  0

h_i is one output of a linear map, as in `expunge.audit.attribution`, at every position. With the model before
unlearning as the other, the chosen neurons' contribution becomes what it was, all else staying as unlearned: if they
are what hides a fact, the fact returns, and as many random neurons bring back less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.audit.layout import Layout
from expunge.errors import InputError
from expunge.models.architecture import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def ablated(
    model: PreTrainedModel, layout: Layout, neurons: Sequence[int], source: PreTrainedModel | None = None
) -> Iterator[None]:
    """Inside, `neurons` (indices into `layout`) give what they give in `source`, or zero without one.

    The source reads whatever the model's backbone is called with, each time before it. Neither model is changed.

    Raises:
        InputError: inside, with a source, when the backbone is called with a cache of keys and values, which are the
            model's own and would mislead the source.
    """
    chosen = _by_map(layout, neurons)
    arch = describe(model)
    with ExitStack() as hooks:
        values: dict[tuple[int, str], Tensor] = {}
        if source is not None:
            other = describe(source)
            for place in chosen:
                keep = partial(_keep, values, place)
                hooks.callback(other.linears[place[0]][place[1]].register_forward_hook(keep).remove)
            mirror = partial(_mirror, other.backbone)
            hooks.callback(arch.backbone.register_forward_pre_hook(mirror, with_kwargs=True).remove)
        for place, index in chosen.items():
            put = partial(_put, values, place, index)
            hooks.callback(arch.linears[place[0]][place[1]].register_forward_hook(put).remove)
        yield


def _by_map(layout: Layout, neurons: Sequence[int]) -> dict[tuple[int, str], Tensor]:
    """The chosen outputs of each map."""
    places = [layout.place(int(neuron)) for neuron in neurons]
    return {
        key: torch.tensor([index for module, layer, index in places if (layer, module) == key])
        for key in {(layer, module) for module, layer, _ in places}
    }


def _mirror(backbone: nn.Module, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    if named.get("past_key_values") is not None:
        raise InputError("A cache of keys and values cannot be shared.", "ablated", "Score texts in one piece.")
    with torch.no_grad():
        backbone(*inputs, **{**named, "use_cache": False})


def _keep(
    values: dict[tuple[int, str], Tensor], place: tuple[int, str], module: nn.Module, inputs: Any, output: Tensor
) -> None:
    values[place] = output


def _put(
    values: dict[tuple[int, str], Tensor],
    place: tuple[int, str],
    index: Tensor,
    module: nn.Module,
    inputs: Any,
    output: Tensor,
) -> Tensor:
    changed = output.clone()
    changed[..., index] = values[place][..., index].to(output) if place in values else 0.0
    return changed
