"""What A_t is compared with: A_{t-1} of the batch before it, or A of the same examples at other weights.

    PreviousBatch       A_{t-1}(b_{t-1})        arXiv:2509.22263, Algorithm 1: two minibatches, two sets of weights
    PreviousWeights     A(theta_{t-1}; b_t)     what eq. 3 writes: one step of the weights, the examples unchanged
    OriginalWeights     A(theta_0; b_t)         what its text promises: influence stays at its original level

theta_0 is the model as training begins, a projection that is trained or stands in it included.

In the first step the first two have nothing to compare with, and the third compares with itself: no penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import InternalError
from expunge.unlearning.transforms.attribution_levels import Influence


class Reference(ABC):
    """Gives A_ref for the rows at hand; its state is what exact resume needs."""

    @abstractmethod
    def of(self, influence: Callable[[], Influence]) -> Influence | None:
        """A_ref; `influence` gives A of the rows at hand at the weights that the model then has."""

    def keep(self, now: Influence) -> None:
        """Remember what the next step needs: `now` is A_t, and the weights are those before the step."""
        return

    def state(self) -> dict[str, Tensor]:
        """Live tensors by name."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave; InternalError where that is of other weights."""
        if state:
            raise _foreign()


class PreviousBatch(Reference):
    """Keeps A of the last step: one copy of what has influence."""

    def __init__(self, names: Influence) -> None:
        self._names = names.keys()
        self._previous: Influence | None = None

    def of(self, influence: Callable[[], Influence]) -> Influence | None:
        """A of the last step's rows."""
        return self._previous

    def keep(self, now: Influence) -> None:
        """A_t."""
        self._previous = now

    def state(self) -> dict[str, Tensor]:
        """A_{t-1}."""
        return dict(self._previous or {})

    def load_state(self, state: dict[str, Tensor]) -> None:
        """A_{t-1}."""
        if state and state.keys() != self._names:
            raise _foreign()
        self._previous = state or None


class OriginalWeights(Reference):
    """Keeps the weights at which it is made, those of the start of the run: one copy of the trained parameters.

    They are not part of the state: a resumed run starts from the same weights before its state is loaded.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._kept = {name: p.detach().clone() for name, p in parameters.items()}

    def of(self, influence: Callable[[], Influence]) -> Influence:
        """A of the rows at hand at theta_0."""
        with weights_from(self._parameters, self._kept):
            return influence()


class PreviousWeights(Reference):
    """Keeps the weights of the last step: one copy of the trained parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._kept: dict[str, Tensor] = {}

    def of(self, influence: Callable[[], Influence]) -> Influence | None:
        """A of the rows at hand at theta_{t-1}."""
        if not self._kept:
            return None
        with weights_from(self._parameters, self._kept):
            return influence()

    @torch.no_grad()
    def keep(self, now: Influence) -> None:
        """theta_t."""
        for name, p in self._parameters.items():
            self._kept[name] = self._kept[name].copy_(p) if name in self._kept else p.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """theta_{t-1}."""
        return dict(self._kept)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """theta_{t-1}."""
        if state and state.keys() != self._parameters.keys():
            raise _foreign()
        self._kept = dict(state)


@contextmanager
def weights_from(parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters hold the data of `kept` inside, and the very same tensors as before afterwards."""
    here = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = kept[name]
        yield
    finally:
        for name, p in parameters.items():
            p.data = here[name]


def _foreign() -> InternalError:
    return InternalError("a saved state of the attribution penalty is not one of these weights")
