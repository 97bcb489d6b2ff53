"""Algorithm 1 of Ssiuu at the price of half a backward: the penalty rides on the loss's own.

    dJ/dphi_j = dL/dphi_j + 2 strength [A_t,j < 0] (A_t,j - A_{t-1},j) g_j                   arXiv:2509.22263, eq. 14

Each weight is done as soon as its `.grad` is, so nothing of the size of the model is held but A_{t-1}, one copy of the
penalised weights, and two blocks of `_BLOCK` elements (or one row, if that is more). A step of several micro-batches
needs g of all of them before the product, hence one more copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.errors import InternalError
from expunge.unlearning.transforms.attribution_drops import Cut, negative_drop
from expunge.unlearning.transforms.attribution_quantities import Slope
from expunge.unlearning.transforms.attribution_strength import measuring
from expunge.unlearning.transforms.base import BoundTransform, Site
from expunge.unlearning.transforms.maps import LinearMap
from expunge.unlearning.transforms.probability_gradient import Factors, ProbabilityGradient

if TYPE_CHECKING:
    from expunge.models.answers import Answers

_STEPS = "steps"
_BLOCK = 1 << 20
"""Elements worked on at once: smaller blocks lose time to dispatch, larger ones only take memory."""


class RiddenPenalty(BoundTransform):
    """The penalty of the previous batch on parameters, of absolute strength.

    With several processes g is summed over them before the product, and each adds its share of the penalty, since the
    loop sums their gradients.

    Args:
        site: where it works.
        maps: what is penalised.
        slope: of what influence is measured on.
        cut: see `attribution_drops`.
        strength: lambda.
        measure_every: steps between two measurements, the first of them at step 2.
    """

    def __init__(
        self,
        site: Site,
        maps: Sequence[LinearMap],
        slope: Slope,
        cut: Cut,
        strength: float,
        measure_every: int,
    ) -> None:
        self._site, self._cut, self._strength, self._every = site, cut, strength, measure_every
        self._ride = ProbabilityGradient(maps, self._visit, slope, site.reduce)
        self._weights = {m.name: m.weight for m in maps}
        self._previous: dict[str, Tensor] = {}
        self._unfinished: dict[str, Tensor] = {}
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._steps = 0
        self._last = True
        self._squares = torch.zeros(3, dtype=torch.float64)

    def watch(self, forget_rows: int) -> AbstractContextManager[None]:
        """Listens to the linear maps in one fused forward."""
        return self._ride.watch(forget_rows)

    def before_backward(self, loss: Tensor, forget: Answers, last: bool) -> None:
        """The coming backward adds this micro-batch to g and, if it is the `last`, the penalty to `.grad`.

        Raises:
            NotBySequence: here or in that backward, where the loss cannot be ridden on.
        """
        self._last = last
        self._ride.before_backward(loss, forget)

    def apply(self) -> dict[str, float]:
        """Ends the step. On measured ones: the penalty, and its gradient's norm over that of the loss's gradient."""
        self.rest()
        measured = measuring(self._steps, self._every)
        self._steps += 1
        if not measured:
            return {}
        drop, penalty, loss = self._squares.sqrt().tolist()
        self._squares.zero_()
        return {
            "attribution_penalty": self._strength * drop**2,
            "attribution_gradient_ratio": 2 * self._strength * penalty / loss if loss else 0.0,
        }

    def rest(self) -> None:
        """Take the hooks off the weights."""
        self._ride.rest()

    def state(self) -> dict[str, Tensor]:
        """A of the last step by parameter name, and the number of steps."""
        return {_STEPS: torch.tensor(self._steps), **self._previous}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of a run on the same weights; raises `InternalError` where the names differ."""
        self._steps = int(state[_STEPS])
        expected = self._weights if self._steps else {}
        if state.keys() - {_STEPS} != expected.keys():
            raise InternalError("a saved state of the attribution penalty is not one of these weights")
        self._previous = {name: state[name].to(weight) for name, weight in expected.items()}

    def _visit(self, linear: LinearMap, factors: Factors) -> None:
        unfinished = self._unfinished.pop(linear.name, None)
        if not self._last:
            onto = torch.zeros_like(linear.weight) if unfinished is None else unfinished
            self._unfinished[linear.name] = factors.add_block(slice(None), onto, keep=True)
            return
        if self._steps == 0:
            self._previous[linear.name] = torch.empty_like(linear.weight)
        for rows in _blocks(linear.weight):
            g, out = self._scratch_like(linear.weight.detach()[rows])
            g = factors.add_block(rows, g if unfinished is None else unfinished[rows], keep=unfinished is not None)
            self._penalise(linear, rows, self._site.reduce(g), out)

    def _penalise(self, linear: LinearMap, rows: slice, g: Tensor, out: Tensor) -> None:
        weight, previous = linear.weight.detach()[rows], self._previous[linear.name][rows]
        if self._steps == 0:
            torch.mul(weight, g, out=previous)
            return
        assert linear.weight.grad is not None  # we are called from the hook that follows its accumulation
        gradient = linear.weight.grad[rows]
        drop = self._cut(negative_drop(weight, g, previous, out=out))
        if measuring(self._steps, self._every):
            self._measure(gradient, drop, g)
        gradient.addcmul_(drop, g, value=-2 * self._strength / self._site.world)

    def _measure(self, gradient: Tensor, drop: Tensor, g: Tensor) -> None:
        loss_gradient = self._site.reduce(gradient.clone())
        norms = [torch.linalg.vector_norm(x) for x in (drop, drop * g, loss_gradient)]
        self._squares += torch.stack(norms).double().cpu().square()

    def _scratch_like(self, block: Tensor) -> Tensor:
        """Two uninitialised tensors of the shape of `block`, the same memory every time."""
        kept = self._scratch.get((block.device, block.dtype))
        if kept is None or kept.shape[1] < block.numel():
            kept = self._scratch[block.device, block.dtype] = block.new_empty(2, block.numel())
        return kept[:, : block.numel()].view(2, *block.shape)


def _blocks(weight: Tensor) -> Iterator[slice]:
    rows, columns = weight.shape
    height = max(1, _BLOCK // columns)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))
