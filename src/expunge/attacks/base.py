"""What every attack gives back: the whole curve, its best point, and what it cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter
from transformers import PreTrainedModel

from expunge.attacks.budget import Budget
from expunge.attacks.cells import Cells, open_cells
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.load import load_model
from expunge.models.scores import ItemScore, Scores
from expunge.progress import Progress, Silent
from expunge.request import Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The score at one moment of one cell (learning rate, seed); step 0 is the model before the attack.

    Args:
        learning_rate: of the cell.
        seed: of the cell.
        step: optimizer steps taken; for an attack that does not train, variants of the model tried.
        examples_seen: training examples seen, repeats counted.
        accuracy: over the scored items.
        log_odds: mean over the scored items.
        item_log_odds: of each scored item, in the order of `AttackResult.held_out_ids`.
        variant: what was done to the model at this point, in words, where it was not training.
        twin_log_odds: of each twin in `AttackResult.twin_ids`; empty where none was scored.
    """

    learning_rate: float
    seed: int
    step: int
    examples_seen: int
    accuracy: float
    log_odds: float
    item_log_odds: tuple[float, ...] = ()
    variant: str = ""
    twin_log_odds: tuple[float, ...] = ()


@dataclass(frozen=True)
class AttackResult:
    """How much came back.

    Args:
        name: of the attack.
        settings: of the attack, as plain JSON values.
        curve: all points of all cells; every cell begins with step 0.
        start: scores of the held-out items before the attack.
        best: the point of the highest log-odds over grid and time (the first one where several tie).
        best_accuracy: likewise for accuracy.
        items: the items' scores at `best`.
        trained_ids: what was trained on, in order.
        held_out_ids: what was scored, in order; never trained on.
        samples: greedy answer of each scored item at the end of the cell of `best`; untrusted text.
        allowed: the most the attack could have spent.
        spent: what it spent.
        notes: choices that a reader has to know of, in words.
        seconds: of all cells, those taken from the store included.
        rho: correlation of the attributions before and after the attack (arXiv:2509.22263), where measured.
        outputs: everything that was said to each scored item, of an attack that counts it; untrusted text.
        twin_ids: id of the twin of each scored item whose twin was scored too, by the id of the item, in order.
    """

    name: str
    settings: dict[str, Any]
    curve: tuple[CurvePoint, ...]
    start: Scores
    best: CurvePoint
    best_accuracy: CurvePoint
    items: tuple[ItemScore, ...]
    trained_ids: tuple[str, ...]
    held_out_ids: tuple[str, ...]
    samples: dict[str, str]
    allowed: Budget
    spent: Budget
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    rho: float | None = None
    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    twin_ids: dict[str, str] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether it was to train, and no cell of it got as far as a first score."""
        return self.spent.steps > 0 and not any(point.step for point in self.curve)

    def first_reaching(self, log_odds: float) -> CurvePoint | None:
        """The point with the fewest examples seen at which the mean log-odds is at least `log_odds`, or None."""
        reached = [point for point in self.curve if point.log_odds >= log_odds]
        return min(reached, key=lambda point: point.examples_seen, default=None)

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON types; `from_json` gives an equal one."""
        json: dict[str, Any] = _RESULT.dump_python(self, mode="json")
        return json

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> AttackResult:
        """The result that `to_json` wrote.

        Raises:
            ValueError: it is not one.
        """
        return _RESULT.validate_python(json)


def leads(curve: Sequence[CurvePoint], scored: Sequence[str], twinned: Sequence[str]) -> tuple[float, ...]:
    """How far the items `twinned` stand above their made-up twins, mean at each point of a curve at which the items
    `scored` and those twins were scored, nats; empty without twins."""
    columns = [scored.index(item) for item in twinned]
    return tuple(
        fmean(point.item_log_odds[column] for column in columns) - fmean(point.twin_log_odds)
        for point in curve
        if columns
    )


_RESULT: TypeAdapter[AttackResult] = TypeAdapter(AttackResult)


class Attacked(NamedTuple, Generic[T]):
    """An attack's result, and beside it what the probe saw in the attacked model."""

    result: AttackResult
    probed: T | None


@dataclass(frozen=True)
class Target(Generic[T]):
    """What is attacked, and what an attack needs beside; see `Attack.run`."""

    model: PreTrainedModel
    encoder: Encoder
    request: Request
    progress: Progress
    probe: Callable[[PreTrainedModel], T] | None
    cells: Cells
    like: AttackResult | None
    original: str | None
    twins: Mapping[str, Example] = field(default_factory=dict)

    def twinned(self, scored: Sequence[Example]) -> dict[str, Example]:
        """The twins of the scored items that have one, in their order."""
        return {item.id: self.twins[item.id] for item in scored if item.id in self.twins}

    def require_original(self) -> str:
        """Folder or Hub id of the model before unlearning; InputError where none is known."""
        if self.original is None:
            raise InputError("This attack needs the model before unlearning.", "original", "Leave this attack out.")
        return self.original

    def load_original(self) -> PreTrainedModel:
        """The model before unlearning, a second one in memory: let go of it soon; errors as `require_original`."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return load_model(self.require_original(), dtype=dtype, device=str(self.model.device)).model


class Attack(ABC):
    """Tries to bring knowledge back and leaves the model bit-equal to what it was.

    A frozen dataclass whose fields are the settings.

    `control_only` marks an attack that can find an answer where there is no knowledge, since it searches for the answer
    itself or has the original at hand: what it brings back says something only beside the same attack on a control.
    `own_scale` marks one whose log-odds are not the model's, so that they make no recovery with those of the original:
    it is shown, and has no part in the verdict. Only one that `uses_original` is given the model before unlearning.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    control_only: ClassVar[bool] = False
    own_scale: ClassVar[bool] = False
    uses_original: ClassVar[bool] = False

    def run(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        request: Request,
        *,
        progress: Progress | None = None,
        probe: Callable[[PreTrainedModel], T] | None = None,
        cells: Cells | Path | None = None,
        like: AttackResult | None = None,
        original: str | None = None,
        twins: Mapping[str, Example] | None = None,
    ) -> Attacked[T]:
        """The result, scored on items that were not trained on.

        Args:
            model: any causal LM; it comes back bit-equal.
            encoder: the one the model was unlearned with.
            request: what was to be forgotten, and the material of the attack.
            progress: told of every step.
            probe: called with the attacked model at the end of a cell that leads so far; the value of the cell with
                the best log-odds is returned.
            cells: where finished cells are kept (a folder or a mapping); an interrupted attack goes on from there.
            like: attack with the split of that result, as a control must be.
            original: folder or Hub id of the model before unlearning, for an attack that `uses_original`.
            twins: made-up twins of forget items, by their ids; scored whenever the items are, as their control.

        Raises:
            InputError: the request lacks what the attack needs.
        """
        told = progress or Silent()
        before = original if self.uses_original else None
        return self.launch(Target(model, encoder, request, told, probe, open_cells(cells), like, before, twins or {}))

    def settings(self) -> dict[str, Any]:
        """The attack's own, as plain JSON values."""
        plain: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return plain

    @abstractmethod
    def launch(self, target: Target[T]) -> Attacked[T]:
        """Make the attack; the arguments and errors are those of `run`."""
