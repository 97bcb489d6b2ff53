"""What may change a gradient between the loss and the optimizer: `GradientTransform` -> `BoundTransform`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor, nn

from expunge.unlearning.objectives.base import WHOLE, Share

if TYPE_CHECKING:
    from expunge.data.collate import Batch
    from expunge.models.answers import Answers
    from expunge.models.architecture import Architecture
    from expunge.unlearning.batches import Among

Side = Literal["forget", "retain"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a transform works: one model, its trained parameters, and the processes that share them.

    Args:
        model: the model in training, after its parametrization.
        arch: where its blocks are.
        parameters: the trained parameters, by name.
        reduce: sums a tensor over all processes, in place, and returns it; the identity for one process.
        world: the number of processes.
        transforms: all of the method.
    """

    model: nn.Module
    arch: Architecture
    parameters: dict[str, nn.Parameter]
    reduce: Callable[[Tensor], Tensor]
    world: int = 1
    transforms: tuple[GradientTransform, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether a transform has no other beside it, so that the gradient is taken once, at the step's weights."""
        return len(self.transforms) < 2


class GradientTransform(ABC):
    """A small frozen description of a change to the gradient; `bind` gives the object that makes it.

    `masks` marks one that holds single weights still, which no projection of the step may move.
    """

    masks: ClassVar[bool] = False

    @property
    def wants_options(self) -> bool:
        """Whether it asks a step for the wrong options of forget rows."""
        return False

    @abstractmethod
    def bind(self, site: Site) -> BoundTransform:
        """A runtime for one run on `site`; raises `InputError` where the transform cannot work there."""


class Step(Protocol):
    """One optimizer step, as a transform sees it: what it may ask of the loop."""

    @property
    def number(self) -> int:
        """Steps made before this one."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every forget item has come once more."""

    @property
    def wanted(self) -> Share:
        """How much of each side is asked for here: a transform above may ask for one side alone."""

    def add(self, share: Share, among: Among | None = None) -> None:
        """Add to `.grad` this process's gradient of `share` of the objective at the present weights.

        `among` limits the forget items, by their indices, to some; only where nothing is asked of the retain side.
        """

    def rows(self, side: Side, ahead: int = 0, among: Among | None = None) -> Iterator[Batch]:
        """This process's micro-batches of forget rows (of the items `among` all) or retain rows of the step `ahead`
        steps from now (before, if negative)."""

    def answers(self, rows: Batch) -> Answers:
        """What the model says to `rows` at the present weights, with its graph."""

    def options(self, rows: Batch) -> tuple[Batch, Tensor]:
        """The wrong options of forget rows after the same prompts, and the number among `rows` that owns each; for a
        transform that `wants_options`."""

    def tokens(self, side: Side, ahead: int = 0, among: Among | None = None) -> int:
        """Answer tokens of that side of that step, over all processes: what a mean over it is divided by."""


class BoundTransform(ABC):  # noqa: B024 - every method has a default: a transform overrides what it changes
    """A transform at work.

    One step of the loop calls `gradient` once, sums `.grad` over the processes, calls `apply`, has the optimizer step,
    and calls `settle`. While `Step.add` runs, each micro-batch with forget rows calls `before_forward` on these (unless
    they are only there to keep the processes in step), `watch` around the fused forward and `before_backward` on its
    loss. Every process makes the same calls.
    """

    def gradient(self, step: Step) -> dict[str, float]:
        """Leave in `.grad` this process's share of the gradient, and the weights as they were; numbers worth logging.

        With several transforms `step.add` of the first leads through the second, and so on. Each finds `.grad` empty,
        and what it leaves is added to what those above had; it may be called more than once in a step.
        """
        step.add(WHOLE)
        return {}

    def before_forward(self, rows: Batch) -> None:
        """Look at the forget rows of one micro-batch before its forward, while no transform watches yet."""
        return

    def watch(self, forget_rows: int) -> AbstractContextManager[None]:
        """A context for the forward of one micro-batch, whose rows [0, forget_rows) are forget examples."""
        return nullcontext()

    def before_backward(self, loss: Tensor, forget: Answers, last: bool) -> None:
        """Look at a loss with forget rows whose graph is alive; `last` marks the step's last micro-batch."""
        return

    def apply(self) -> dict[str, float]:
        """Finish the step's change to `.grad`, before clipping; the numbers worth logging, often none."""
        return {}

    def settle(self, rate: float) -> None:
        """Set the weights right after the optimizer's step at learning rate `rate`.

        AdamW scales every entry on its own, goes on moving by its moments, and decays; so a gradient that is masked,
        projected or of low rank does not make a step that is. A promise about the weights is kept here.
        """
        return

    def state(self) -> dict[str, Tensor]:
        """What exact resume needs: live tensors, not copies."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` of an equal run gave; the tensors now belong to this transform."""
        return
