"""Unlearning of sparse models: weights that were pruned to zero stay zero.

    mask = [W != 0]                                                                                 arXiv:2602.00577

Of the method only this mask is public; its redistribution of importance is not, and is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from expunge.unlearning.transforms.base import GradientTransform, Site
from expunge.unlearning.transforms.base_maps import base_maps
from expunge.unlearning.transforms.masks import MaskingTransform

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step


@dataclass(frozen=True, slots=True)
class SparsityMask(GradientTransform):
    """The mask of SAU; adapters, whose own zeros it would hold, are refused."""

    masks: ClassVar[bool] = True

    def bind(self, site: Site) -> BoundSparsityMask:
        """The mask at work on the trained parameters of `site`."""
        base_maps(site)  # refuses adapters
        return BoundSparsityMask(site)


class BoundSparsityMask(MaskingTransform):
    """Reads the zeros in the first step."""

    def find(self, step: Step) -> Mapping[str, Tensor]:
        """Where the weights are not zero."""
        return {name: p.detach() != 0 for name, p in self._site.parameters.items()}
