"""The trained linear maps of the blocks by their short names, for transforms that need the maps' own weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from expunge.errors import InputError
from expunge.models.architecture import base_linear
from expunge.unlearning.transforms.maps import LinearMap, trained_linear_maps

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Site

FEED_FORWARD: Final = ("gate", "up", "down", "gate_up")
"""Short names of the linear maps of a feed-forward network, the fused one included."""


def base_maps(site: Site, kinds: Collection[str] = ()) -> tuple[LinearMap, ...]:
    """The trained linear maps that `kinds` names, all if it is empty, in the order of the blocks.

    Raises:
        InputError: none is trained, or adapters are trained in their place.
    """
    own = {id(base_linear(module)): kind for block in site.arch.linears for kind, module in block.items()}
    maps = trained_linear_maps(site)
    if strange := [m.name for m in maps if id(m.module) not in own]:
        raise InputError(
            "This transform works on the weights of the linear maps; adapters move them in directions of their own.",
            f"{strange[0]}, and {len(strange) - 1} more",
            "Use parametrization=full or layers.",
        )
    chosen = tuple(m for m in maps if not kinds or own[id(m.module)] in kinds)
    if not chosen:
        raise InputError(
            "None of the linear maps that this transform works on is trained.",
            f"wanted {', '.join(kinds)}; trained {', '.join(sorted({own[id(m.module)] for m in maps}))}",
            "Train them too, or leave this transform out.",
        )
    return chosen


def freeze_others(site: Site, names: Iterable[str]) -> None:
    """Take the gradient off all trained parameters but `names`, so that the optimizer passes over them.

    It then neither moves nor decays them; a gradient of zero would leave the decay.
    """
    kept = set(names)
    for name, parameter in site.parameters.items():
        if name not in kept:
            parameter.grad = None
