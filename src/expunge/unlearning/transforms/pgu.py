"""Projected gradient unlearning: no linear map moves along what its retain inputs span.

    C = sum_k x_k x_k^T                 over the positions k of all retain rows, x_k an input of the map
    P = V_q V_q^T                       the first q eigenvectors of C: sum_{i<=q} s_i >= energy sum_i s_i, s_i^2 = eig C
    g <- g - g P                        the gradient of W [out, in]                                   arXiv:2312.04095

Then (W + dW) x = W x for every x in the span of V_q, so what a map says to retain inputs stays, as long as the inputs
do. s are the singular values of the inputs, as in the authors' code, which trains by plain gradient descent and leaves
all parameters but the projected ones alone. AdamW's step is not a multiple of the gradient, so the step is projected
too, decay included; under gradient descent that changes nothing.

Embeddings, norms, biases and the head stand still. LoRA is refused: its step dB A x + B dA x is not a gradient times a
rate, and keeping it off the retain inputs would leave B nothing to move along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from expunge.errors import InputError
from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site
from expunge.unlearning.transforms.base_maps import base_maps, freeze_others
from expunge.unlearning.transforms.covariances import InputCovariances, passes
from expunge.unlearning.transforms.epochs import retain_epoch
from expunge.unlearning.transforms.maps import LinearMap

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step

_COVARIANCE_BYTES: Final = 2 << 30
"""Covariances held at once; where those of all maps take more, the retain rows are gone through several times."""
_TOGETHER: Final = "|"
"""Joins the names of the maps of one input in the saved state; no parameter has it in its name."""


@dataclass(frozen=True, slots=True)
class ProjectedGradient(GradientTransform):
    """PGU on the linear maps of the blocks.

    Costs, in the first step, a forward of all retain rows and an eigendecomposition per input; later two thin products
    a map and step. Memory: the kept directions [in, q] of each input, and a copy of the maps during a step.

    Args:
        energy: share of the sum of the singular values that the kept directions hold.
    """

    energy: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise InputError("The energy must be above 0 and at most 1.", f"energy={self.energy}")

    def bind(self, site: Site) -> BoundProjectedGradient:
        """The projection at work; raises `InputError` where adapters are trained, no linear map, or beside a mask."""
        if any(each.masks for each in site.transforms):
            raise InputError(
                "A step that is projected off the retain inputs moves weights that a mask holds still, and one that is "
                "masked moves along the retain inputs.",
                "transform",
                "Take one of the two.",
            )
        return BoundProjectedGradient(self, site)


def principal_directions(covariance: Tensor, energy: float) -> Tensor:
    """[d, q] orthonormal: the fewest directions that hold `energy` of the singular values of the inputs."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(covariance)
    singular = values.clamp(min=0).sqrt().flip(0)
    held = singular.cumsum(0)
    q = 1 + int((held < energy * held[-1]).sum())
    return vectors.flip(1)[:, :q].contiguous()


def project_out(change: Tensor, directions: Tensor, transposed: bool) -> Tensor:
    """`change` in place, without its part along `directions` on the input side (the first of a `transposed` map)."""
    if transposed:
        return change.sub_(directions @ (directions.T @ change))
    return change.sub_((change @ directions) @ directions.T)


class BoundProjectedGradient(BoundTransform):
    """Gathers the directions in the first step, at the weights of the start, and keeps them."""

    def __init__(self, config: ProjectedGradient, site: Site) -> None:
        self._config, self._site = config, site
        self._maps = {m.name: m for m in base_maps(site)}
        self._directions: dict[tuple[str, ...], Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def gradient(self, step: Step) -> dict[str, float]:
        """The objective's; in the first step also the mean share of directions that are held."""
        told: dict[str, float] = {}
        if not self._directions:
            self._gather(step)
            shares = [v.shape[1] / v.shape[0] for v in self._directions.values()]
            told = {"pgu_held_directions": sum(shares) / len(shares)}
        step.add(WHOLE)
        return told

    @torch.no_grad()
    def apply(self) -> dict[str, float]:
        """Projects the gradient, and remembers the weights for `settle`."""
        freeze_others(self._site, self._maps)
        for linear, directions in self._pairs():
            if linear.weight.grad is not None:
                project_out(linear.weight.grad, directions, linear.transposed)
            self._before[linear.name] = linear.weight.detach().clone()
        return {}

    def settle(self, rate: float) -> None:
        """Projects the step that was made."""
        for linear, directions in self._pairs():
            before = self._before.pop(linear.name)
            change = project_out(linear.weight.data - before, directions, linear.transposed)
            torch.add(before, change, out=linear.weight.data)

    def state(self) -> dict[str, Tensor]:
        """The directions by the names of their maps."""
        return {_TOGETHER.join(names): directions for names, directions in self._directions.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the directions of an equal run."""
        self._directions = {tuple(names.split(_TOGETHER)): directions for names, directions in state.items()}

    def _pairs(self) -> Iterator[tuple[LinearMap, Tensor]]:
        return ((self._maps[name], kept) for names, kept in self._directions.items() for name in names)

    @torch.no_grad()
    def _gather(self, step: Step) -> None:
        for maps in passes(list(self._maps.values()), _COVARIANCE_BYTES):
            inputs = InputCovariances(maps)
            for rows in retain_epoch(step, self._site):
                with inputs.of(rows):
                    step.answers(rows)
            if step.tokens("retain") == 0:
                raise InputError(
                    "PGU projects on what retain rows span, and this objective uses none.",
                    fix="Use an objective with a retain side, such as graddiff or npo.",
                )
            groups = list(inputs.grouped())
            if self._site.reduce(torch.tensor(int(not groups), device=maps[0].weight.device)):
                raise InputError(
                    "A process has no rows, so it has no part in the directions of PGU.",
                    fix="Take fewer processes than forget items.",
                )
            for names, total in groups:
                kept = principal_directions(self._site.reduce(total), self._config.energy)
                self._directions[names] = kept.to(self._maps[names[0]].weight.dtype)
