"""Masks that hold: what may not move keeps its bits, whatever the optimizer does.

    g <- mask * g;      theta' <- mask * theta' + (1 - mask) * theta

A mask of the gradient alone lets AdamW's moments and decay move what it covers, hence the second line.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.transforms.base import BoundTransform, Site, Step
from expunge.unlearning.transforms.base_maps import freeze_others


class MaskingTransform(BoundTransform):
    """Finds a mask in the first step, and holds it for the run; memory: the masked parameters once more in a step.

    Args:
        site: where it works.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._masks: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    @abstractmethod
    def find(self, step: Step) -> Mapping[str, Tensor]:
        """For each parameter of which anything may move a mask that broadcasts to it, true where it may."""

    def gradient(self, step: Step) -> dict[str, float]:
        """The objective's; in the first step also the share of the trained numbers that may move."""
        told: dict[str, float] = {}
        if not self._masks:
            self._masks = {name: mask for name, mask in self.find(step).items() if mask.any()}
            told = {"mask_share": self._share()}
        step.add(WHOLE)
        return told

    @torch.no_grad()
    def apply(self) -> dict[str, float]:
        """Masks the gradient, and remembers the weights for `settle`."""
        freeze_others(self._site, self._masks)
        for name, mask in self._masks.items():
            parameter = self._site.parameters[name]
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)
            self._before[name] = parameter.detach().clone()
        return {}

    def settle(self, rate: float) -> None:
        """Puts back what may not move."""
        for name, mask in self._masks.items():
            weight = self._site.parameters[name].data
            torch.where(mask, weight, self._before.pop(name), out=weight)

    def state(self) -> dict[str, Tensor]:
        """The masks by parameter name."""
        return dict(self._masks)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the masks of an equal run."""
        self._masks = dict(state)

    def _share(self) -> float:
        free = sum(
            int(mask.sum()) * self._site.parameters[name].numel() // mask.numel() for name, mask in self._masks.items()
        )
        return free / sum(p.numel() for p in self._site.parameters.values())
