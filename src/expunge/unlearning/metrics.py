"""What is measured in a step, and where it is written: `metrics.jsonl`, one line a step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from expunge.models.checkpoint import atomic_write_text
from expunge.models.storage import disk_errors


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The state after `step` steps; None is what was not measured.

    Args:
        step: steps made; 0 is the untouched model, which has scores only.
        seconds: since the start, the earlier parts of a resumed run included.
        loss: of the step's batch, before the step.
        forget: its forget term, unweighted.
        retain: its retain term, unweighted; None where a transform gave it no weight.
        grad_norm: of the whole gradient, before clipping.
        learning_rate: of the step.
        forget_accuracy: of the forget items after the step.
        forget_log_odds: of the forget items after the step, None also where they have no options.
        forget_probability: mean P(answer) of the forget items after the step.
        landed: where on the stretch since the last good scoring the run came to rest, if it went back; see `landing`.
        transform: what the gradient transforms measured, by name.
    """

    step: int
    seconds: float
    loss: float | None = None
    forget: float | None = None
    retain: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    forget_accuracy: float | None = None
    forget_log_odds: float | None = None
    forget_probability: float | None = None
    landed: float | None = None
    transform: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat object of plain JSON types; what was not measured is left out."""
        own = asdict(self)
        transform: dict[str, float] = own.pop("transform")
        return {**{name: value for name, value in own.items() if value is not None}, **transform}

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> StepMetrics:
        """The metrics that `to_json` gave."""
        names = {f.name for f in fields(cls)}
        own = {name: value for name, value in record.items() if name in names}
        return cls(**own, transform={name: value for name, value in record.items() if name not in names})


class MetricsFile:
    """`metrics.jsonl` in a folder; begins with what an earlier part of the run had measured."""

    def __init__(self, folder: Path, history: Iterable[StepMetrics]) -> None:
        self._path = folder / "metrics.jsonl"
        atomic_write_text(self._path, "".join(map(_line, history)))

    def append(self, metrics: StepMetrics) -> None:
        """Add one line; ResourceError where the disk is full."""
        with disk_errors(self._path), self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(metrics))


def _line(metrics: StepMetrics) -> str:
    return json.dumps(metrics.to_json(), allow_nan=False) + "\n"
