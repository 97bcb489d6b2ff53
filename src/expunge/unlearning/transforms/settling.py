"""A word after the optimizer's: what a transform of the gradient alone cannot promise.

    theta' = theta - rate * scaled(gradient, moments) - rate * decay * theta                            AdamW

AdamW scales every entry on its own, goes on moving by its moments, and decays. So a gradient that is masked, projected
or of low rank does not make a step that is; a transform that promises something about the *weights* has to see them
after the step. All optimizers of the process are listened to by one hook, which is never taken off.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from expunge.unlearning.transforms.base import BoundTransform


class SettlingTransform(BoundTransform):
    """A transform that is called once more, by `settle`, when the optimizer has moved the weights.

    Args:
        parameters: what it settles; an optimizer that moves the first of them is this run's.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._settled = parameters
        self._armed = False
        _listen()
        _LISTENING.add(self)

    def apply(self) -> dict[str, float]:
        """Wait for the step that follows; an optimizer that comes later, such as an attacker's, is none of ours."""
        self._armed = True
        return {}

    @abstractmethod
    def settle(self, rate: float) -> None:
        """Set the weights right after a step at learning rate `rate`."""

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Settle, if this is the step that was waited for."""
        rates = [group["lr"] for group in optimizer.param_groups if any(p is self._settled[0] for p in group["params"])]
        if self._armed and rates:
            self._armed = False
            with torch.no_grad():
                self.settle(float(rates[0]))


_LISTENING: WeakSet[SettlingTransform] = WeakSet()


@cache
def _listen() -> None:
    register_optimizer_step_post_hook(_after)


def _after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for transform in list(_LISTENING):
        transform.after(optimizer)
