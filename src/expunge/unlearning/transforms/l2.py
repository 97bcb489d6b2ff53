"""L2 to earlier weights, the control of the attribution penalty: the same pull without attribution.

    J = L + (strength / 2) || theta - anchor ||^2,        dJ = dL + strength (theta - anchor)             absolute
    dJ = dL + strength ||dL|| (theta - anchor) / ||theta - anchor||                                       relative

anchor = "initial": the weights at the start of the run. anchor = "previous": the weights before the last step, so that
theta_t - theta_{t-1} is that step itself, which is damped; pulled to the *present* weights there would be no gradient.
In the first step both are zero. The pull goes through AdamW like any gradient: this is no decoupled decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from expunge.errors import InputError, nearest
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site

Anchor = Literal["previous", "initial"]
Scale = Literal["absolute", "relative"]


@dataclass(frozen=True, slots=True)
class L2Penalty(GradientTransform):
    """A pull of all trained parameters towards earlier ones; costs one copy of them.

    Args:
        strength: the penalty's factor ("absolute"), or the norm of its gradient over that of the loss ("relative").
        anchor: "previous" or "initial".
        scale: "absolute" or "relative".
    """

    strength: float = 1.0
    anchor: Anchor = "previous"
    scale: Scale = "absolute"

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise InputError("The strength must be a finite number of at least 0.", f"strength={self.strength}")
        for name, value, kind in (("anchor", self.anchor, Anchor), ("scale", self.scale, Scale)):
            if value not in (known := get_args(kind)):
                raise InputError(f"There is no such {name}.", f"{name}={value}", nearest(value, known))

    def bind(self, site: Site) -> BoundL2Penalty:
        """The pull at work on the trained parameters of `site`."""
        return BoundL2Penalty(self, site)


def pull(gradients: Sequence[Tensor], offsets: Sequence[Tensor], strength: float, scale: Scale) -> tuple[float, float]:
    """Add the penalty's gradient to `gradients`, in place; the norm of `offsets`, and of what was added over theirs
    (0 where the loss has no gradient)."""
    distance, loss = (float(get_total_norm(list(tensors))) for tensors in (offsets, gradients))
    if not distance:
        return 0.0, 0.0
    factor = strength if scale == "absolute" else strength * loss / distance
    for gradient, offset in zip(gradients, offsets, strict=True):
        gradient.add_(offset, alpha=factor)
    return distance, factor * distance / loss if loss else 0.0


class BoundL2Penalty(BoundTransform):
    """Holds the anchor. Works on the summed gradient, so that every process adds the same."""

    def __init__(self, config: L2Penalty, site: Site) -> None:
        self._config, self._site = config, site
        self._anchor: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self) -> dict[str, float]:
        """The distance to the anchor, and the norm of the pull over that of the loss's gradient."""
        moved = {name: p for name, p in self._site.parameters.items() if p.grad is not None}
        known = [(p, self._anchor[name]) for name, p in moved.items() if name in self._anchor]
        gradients = [p.grad for p, _ in known if p.grad is not None]
        offsets = [p.detach() - anchor for p, anchor in known]
        distance, ratio = pull(gradients, offsets, self._config.strength, self._config.scale)
        for name, p in moved.items():
            if name not in self._anchor:
                self._anchor[name] = p.detach().clone()
            elif self._config.anchor == "previous":
                self._anchor[name].copy_(p.detach())
        return {"l2_distance": distance, "l2_gradient_ratio": ratio}

    def state(self) -> dict[str, Tensor]:
        """The anchor by parameter name."""
        return dict(self._anchor)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the anchor of an equal run."""
        self._anchor = dict(state)
