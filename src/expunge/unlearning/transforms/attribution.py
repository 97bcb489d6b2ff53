"""The attribution penalty of Ssiuu: negative influence on the forget answers may not change from step to step.

    A_t = phi * g,     g = d/dphi sum_{(x,y) in b} P(y | x)                              arXiv:2509.22263, eq. 12 and 13
    J   = L + strength * sum_j [A_t,j < 0] (A_t,j - A_{t-1},j)^2                         eq. 3 and 6, g held constant
    dJ/dphi_j = dL/dphi_j + 2 strength [A_t,j < 0] (A_t,j - A_{t-1},j) g_j               eq. 14

As in Algorithm 1, b is the step's whole forget batch, A is of the batch sum, A_{t-1} is that of the previous step (of
another batch), and at t = 1 the penalty is 0. phi are the weight matrices of the linear maps inside the blocks, as far
as they are trained: our inference, since the paper's neurons are the outputs of those maps. Embeddings, tied or not,
norms, biases and the head are left alone; under LoRA phi are the adapters.

Memory: A_{t-1}, one copy of the penalised weights, and two blocks of `_BLOCK` elements (or one row, if that is more).
A step of several micro-batches needs g of all of them before the product, hence one more copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.errors import InputError, InternalError
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site
from expunge.unlearning.transforms.maps import LinearMap, trained_linear_maps
from expunge.unlearning.transforms.probability_gradient import Factors, ProbabilityGradient

if TYPE_CHECKING:
    from expunge.models.answers import Answers

_STEPS = "steps"
_BLOCK = 1 << 20
"""Elements worked on at once: smaller blocks lose time to dispatch, larger ones only take memory."""


@dataclass(frozen=True, slots=True)
class AttributionPenalty(GradientTransform):
    """The Ssiuu penalty, absolute strength, anchored at the previous step (arXiv:2509.22263, Algorithm 1).

    Args:
        strength: lambda of eq. 3; the paper uses 1e-3 on FaithUn and 1e-4 on TOFU.
        measure_every: steps between two measurements of the penalty, the first of them at step 2.
    """

    strength: float = 1e-3
    measure_every: int = 10

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError("the penalty's strength must be a number >= 0", f"strength={self.strength}")
        if self.measure_every < 1:
            raise InputError("the steps between two measurements must be >= 1", f"measure_every={self.measure_every}")

    def bind(self, site: Site) -> BoundAttributionPenalty:
        """The penalty at work on the trained linear maps of `site`; raises `InputError` if there are none."""
        return BoundAttributionPenalty(self, site)


def negative_drop(weight: Tensor, gradient: Tensor, previous: Tensor, *, out: Tensor) -> Tensor:
    """`out` becomes [A < 0] (A_prev - A) with A = weight * gradient, and `previous` turns from A_prev into A.

    All of one shape; three passes and no temporary. The penalty is `strength * sum(out^2)`, its gradient by eq. 14
    `-2 * strength * out * gradient`.
    """
    torch.addcmul(previous, weight, gradient, value=-1, out=out)
    torch.mul(weight, gradient, out=previous)
    # The gradient of clamp(A, -inf, 0) is "pass where A < 0", and unlike a comparison it needs no mask tensor.
    torch.ops.aten.hardtanh_backward.grad_input(out, previous, -math.inf, 0.0, grad_input=out)
    return out


class BoundAttributionPenalty(BoundTransform):
    """The penalty at work: g rides the loss's backward, and each weight is done as soon as its `.grad` is.

    With several processes g is summed over them before the product, and each adds its share of the penalty, since the
    loop sums their gradients.
    """

    def __init__(self, config: AttributionPenalty, site: Site) -> None:
        maps = trained_linear_maps(site)
        self._config, self._site = config, site
        self._ride = ProbabilityGradient(maps, self._visit)
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
        """The coming backward adds this micro-batch to g and, if it is the `last`, the penalty to `.grad`."""
        self._last = last
        self._ride.before_backward(loss, forget)

    def apply(self) -> dict[str, float]:
        """Ends the step. On measured ones: the penalty, and its gradient's norm over that of the loss's gradient."""
        self._ride.rest()
        measured = self._measuring
        self._steps += 1
        if not measured:
            return {}
        drop, penalty, loss = self._squares.sqrt().tolist()
        self._squares.zero_()
        return {
            "attribution_penalty": self._config.strength * drop**2,
            "attribution_gradient_ratio": 2 * self._config.strength * penalty / loss if loss else 0.0,
        }

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

    @property
    def _measuring(self) -> bool:
        return self._steps > 0 and (self._steps - 1) % self._config.measure_every == 0

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
        drop = negative_drop(weight, g, previous, out=out)
        if self._measuring:
            self._measure(gradient, drop, g)
        gradient.addcmul_(drop, g, value=-2 * self._config.strength / self._site.world)

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
