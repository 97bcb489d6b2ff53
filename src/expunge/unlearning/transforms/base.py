"""What may change a gradient between the loss and the optimizer: `GradientTransform` -> `BoundTransform`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from expunge.models.answers import Answers
    from expunge.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Site:
    """Where a transform works: one model, its trained parameters, and the processes that share them.

    Args:
        model: the model in training, after its parametrization.
        arch: where its blocks are.
        parameters: the trained parameters, by name.
        reduce: sums a tensor over all processes, in place, and returns it; the identity for one process.
        world: the number of processes.
    """

    model: nn.Module
    arch: Architecture
    parameters: dict[str, nn.Parameter]
    reduce: Callable[[Tensor], Tensor]
    world: int = 1


class GradientTransform(ABC):
    """A small frozen description of a change to the gradient; `bind` gives the object that makes it."""

    @abstractmethod
    def bind(self, site: Site) -> BoundTransform:
        """A runtime for one run on `site`; raises `InputError` where the transform cannot work there."""


class BoundTransform(ABC):
    """A transform at work.

    One step of the loop calls, for each micro-batch, `watch` around the fused forward and `before_backward` on its
    loss; then, once the gradients are those of the whole step, `apply`. Every process makes the same calls.
    """

    @abstractmethod
    def watch(self, forget_rows: int) -> AbstractContextManager[None]:
        """A context for the forward of one micro-batch, whose rows [0, forget_rows) are forget examples."""

    @abstractmethod
    def before_backward(self, loss: Tensor, forget: Answers, last: bool) -> None:
        """Look at a loss whose graph is alive; `last` marks the last micro-batch of the step."""

    @abstractmethod
    def apply(self) -> dict[str, float]:
        """Finish the step's change to `.grad`, before clipping; the numbers worth logging, often none."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What exact resume needs: live tensors, not copies."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` of an equal run gave; the tensors now belong to this transform."""
