"""The gradient of the forget answers' probability, gained from the loss's own backward.

    s_i = log P(y_i | x_i)                                       a forget example's sequence log-probability
    w_i = dL / ds_i                                              found without walking the model
    dL / dout[i, k] = w_i  ds_i / dout[i, k]                     if L sees example i through s_i alone
    g = d/dW sum_i P_i = sum_i sum_k (P_i / w_i) dL/dout[i, k] x[i, k]^T         arXiv:2509.22263, g of eq. 12
    P_i is the slope dP_i / ds_i; that of another function of s_i takes its place

`out` [B, T, d_out] and `x` [B, T, d_in] are output and input of a linear map, so one backward gives the gradient of the
loss and g; a second backward through the fused graph would cost as much as the first. An example with w_i = 0 is no
longer pushed by the loss, so nothing flows that could be rescaled: it counts as one without influence.

The condition is checked on the first backward against a separate gradient of sum P at one weight that every later
computation depends on. Where it does not hold, `NotBySequence` comes out of the forward's or backward's caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.errors import InputError
from expunge.unlearning.transforms.attribution_quantities import Slope
from expunge.unlearning.transforms.maps import LinearMap

if TYPE_CHECKING:
    from expunge.models.answers import Answers

_FIX = "Give the penalty passes of its own (SeparatePenalty), or an objective on `forget.sequence`, such as ga or npo."


class NotBySequence(InputError):
    """The loss does not reach the forget rows through their sequence log-probability alone, so g cannot ride on it."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A weight's g as a product `left.T @ right`: left [n, rows], right [n, columns], n = forget rows x positions."""

    left: Tensor
    right: Tensor

    def add_block(self, rows: slice, onto: Tensor, keep: bool) -> Tensor:
        """These rows of g, written to `onto`, or added to it where `keep`."""
        return torch.addmm(onto, self.left[:, rows].T, self.right, beta=int(keep), out=onto)


class ProbabilityGradient:
    """Hands `visit` the factors of g, weight after weight, while the loss's backward runs.

    Memory: for one weight at a time, a copy of the forget rows of its output's gradient.

    Args:
        maps: the linear maps to listen to, in the order of the blocks.
        visit: called as `visit(map, factors)` once per map and backward, when `map.weight.grad` holds the loss's part.
        slope: the derivative of what is attributed by s_i, from the s_i.
        reduce: sums a tensor over all processes, in place, so that they agree on the check.
    """

    def __init__(
        self,
        maps: Sequence[LinearMap],
        visit: Callable[[LinearMap, Factors], None],
        slope: Slope,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._maps, self._visit, self._slope, self._reduce = maps, visit, slope, reduce
        # Everything the later blocks compute depends on the last map of the first one; and where that is an adapter, it
        # is lora_B, whose gradient is not zero at the start.
        self._probe = [m for m in maps if m.block == maps[0].block][-1]
        self._expected: Tensor | None = None
        self._checked = False
        self._rows = 0
        self._scale: Tensor | None = None
        self._calls = count()
        self._inputs: dict[int, Tensor] = {}
        self._heard: dict[str, list[Factors]] = defaultdict(list)
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def watch(self, forget_rows: int) -> Iterator[None]:
        """A context for one forward whose rows [0, forget_rows) are forget examples."""
        self.rest()
        self._rows = forget_rows
        handles = [m.module.register_forward_hook(partial(self._listen, m)) for m in self._maps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def before_backward(self, loss: Tensor, forget: Answers) -> None:
        """Prepare for `loss.backward()`; raises `NotBySequence` where the loss does not use `forget.sequence`."""
        (pushed,) = torch.autograd.grad(loss, forget.sequence, retain_graph=True, allow_unused=True)
        if pushed is None:
            raise NotBySequence("the objective does not use the log-probability of the forget answers", fix=_FIX)
        alive = pushed.abs() > torch.finfo(pushed.dtype).tiny ** 0.5
        slope = torch.where(alive, self._slope(forget.sequence.detach()), 0.0)
        if not self._checked:
            sequence, probe = forget.sequence, self._probe.weight
            (self._expected,) = torch.autograd.grad(sequence, probe, slope, retain_graph=True)
        self._scale = torch.where(alive, slope / pushed, 0.0)
        for linear in self._maps:
            hook = partial(self._finish, linear)
            self._handles.append(linear.weight.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def rest(self) -> None:
        """Take the hooks off the weights and forget what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()
        self._heard.clear()
        self._scale = None

    def _listen(self, linear: LinearMap, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim != 3:
            raise InputError(
                "a trained linear map does not keep examples apart: its output is not [batch, positions, width]",
                f"{linear.name}, output of shape {tuple(output.shape)}",
                "Leave it out of the trained parameters.",
            )
        if output.requires_grad:
            # Kept here and not in the hook, which would hold on to every input until the whole backward is done.
            call = next(self._calls)
            self._inputs[call] = inputs[0].detach()[: self._rows]
            hook = partial(self._hear, linear, call)
            output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _hear(self, linear: LinearMap, call: int, gradient: Tensor) -> None:
        if self._scale is None:  # the check's own backward, not the loss's
            return
        outward = (gradient[: self._rows] * self._scale.to(gradient.dtype)[:, None, None]).flatten(0, 1)
        inward = self._inputs.pop(call).flatten(0, 1)
        self._heard[linear.name].append(Factors(inward, outward) if linear.transposed else Factors(outward, inward))

    def _finish(self, linear: LinearMap, weight: Tensor) -> None:
        heard = self._heard.pop(linear.name, [])
        if not heard:
            return
        factors = heard[0]
        if len(heard) > 1:  # one module called several times in the forward
            factors = Factors(torch.cat([f.left for f in heard]), torch.cat([f.right for f in heard]))
        if linear is self._probe and self._expected is not None:
            self._check(factors, self._expected)
        self._visit(linear, factors)

    def _check(self, factors: Factors, expected: Tensor) -> None:
        difference = torch.linalg.vector_norm(factors.left.T @ factors.right - expected)
        size = torch.linalg.vector_norm(expected)
        # Norms and softmaxes compute in float32 even in a float64 model.
        precision = max(torch.finfo(dtype).eps for dtype in (expected.dtype, torch.float32))
        off = difference > precision**0.5 * size  # not so where they are NaN, which is the loop's to report
        off_somewhere, sized = self._reduce(torch.stack([off, size > 0]).to(size)).tolist()
        if off_somewhere:
            raise NotBySequence(
                "the objective reaches the forget examples by more than their sequence log-probability",
                f"{self._probe.name}, off by {difference / size:.1e}",
                _FIX,
            )
        self._checked, self._expected = sized > 0, None  # a vanished probability proves nothing
