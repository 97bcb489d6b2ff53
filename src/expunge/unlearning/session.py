"""A run's state, saved and taken up again so exactly that no one can tell from the weights where it was cut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.models.checkpoint import newest_checkpoint, save_checkpoint
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.metrics import MetricsFile, StepMetrics

if TYPE_CHECKING:
    from expunge.unlearning.landing import Landing
    from expunge.unlearning.transforms.base import BoundTransform

FOLDER: Final = "checkpoints"
"""Where the checkpoints are, below the output folder. Whoever has saved the finished model may delete it."""


class Session:
    """What a step changes: parameters, optimizer, transforms, and where to go back to. Saves and restores all of it."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        transforms: Sequence[BoundTransform],
        landing: Landing | None,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._transforms, self._landing = transforms, landing

    def save(self, output: Path, identity: Mapping[str, Any], history: Sequence[StepMetrics]) -> None:
        """A checkpoint below `output`; ResourceError where the disk is full."""
        meta = {"identity": dict(identity), "history": [metrics.to_json() for metrics in history]}
        save_checkpoint(output / FOLDER, history[-1].step, self._tensors(), meta)

    def resume(self, output: Path, identity: Mapping[str, Any]) -> list[StepMetrics]:
        """The history of the newest sound checkpoint, whose state is taken over; empty if there is none.

        Raises:
            InputError: the checkpoint is of another run.
        """
        checkpoint = newest_checkpoint(output / FOLDER)
        if checkpoint is None:
            return []
        saved = checkpoint.meta["identity"]
        if other := sorted(key for key in identity.keys() | saved.keys() if identity.get(key) != saved.get(key)):
            raise InputError(
                f"The output folder holds checkpoints of another run (different {', '.join(other)}).",
                str(checkpoint.path),
                "Name another folder, or delete the checkpoints.",
            )
        self._load(checkpoint.tensors)
        return [StepMetrics.of_json(record) for record in checkpoint.meta["history"]]

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors |= {f"optimizer/{name}/{key}": value for key, value in self._optimizer.state[parameter].items()}
        for number, transform in enumerate(self._transforms):
            tensors |= {f"transform{number}/{name}": value for name, value in transform.state().items()}
        if self._landing is not None:
            tensors |= {f"landing/{name}": value for name, value in self._landing.state().items()}
        return tensors

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        names = {parameter: name for name, parameter in self._parameters.items()}
        groups = self._optimizer.param_groups
        order = [names[parameter] for group in groups for parameter in group["params"]]
        state = {i: _below(tensors, f"optimizer/{name}/") for i, name in enumerate(order)}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        device = next(iter(self._parameters.values())).device
        for number, transform in enumerate(self._transforms):
            transform.load_state(_below(tensors, f"transform{number}/", device))
        if self._landing is not None:
            self._landing.load_state(_below(tensors, "landing/", device))


class Keeper:
    """Writes metrics and checkpoints as a run goes; without an output folder, or on a secondary process, nothing.

    Args:
        session: what is saved.
        output: the run's folder, or None.
        identity: see `identity.identity`.
        arguments: say how often to save.
        history: what an earlier part of the run had measured.
    """

    def __init__(
        self,
        session: Session,
        output: Path | None,
        identity: Mapping[str, Any],
        arguments: UnlearnArguments,
        history: Sequence[StepMetrics],
    ) -> None:
        self._session, self._output, self._identity, self._arguments = session, output, identity, arguments
        self._metrics = MetricsFile(output, history) if output else None
        self._saved = time.monotonic()

    def note(self, history: Sequence[StepMetrics]) -> None:
        """Write the last line of `history`, and a checkpoint if one is due; ResourceError where the disk is full."""
        if self._metrics is None:
            return
        self._metrics.append(history[-1])
        every = self._arguments.checkpoint_steps
        by_steps = every is not None and history[-1].step % every == 0 < history[-1].step
        if by_steps or time.monotonic() - self._saved >= self._arguments.checkpoint_seconds:
            self.save(history)

    def save(self, history: Sequence[StepMetrics]) -> None:
        """Save a checkpoint now."""
        if self._output is not None:
            self._session.save(self._output, self._identity, history)
            self._saved = time.monotonic()


def _below(tensors: Mapping[str, Tensor], prefix: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Copies on `device` of the tensors under `prefix`: those of a file are in main memory and may be pages of it."""
    return {
        name.removeprefix(prefix): value.to(device, copy=True)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
