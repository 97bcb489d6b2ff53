"""The engine of every relearning attack: fine-tune in each cell of a grid, score as it goes, keep the whole curve."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from expunge.attacks.base import CurvePoint, T
from expunge.attacks.budget import Budget
from expunge.attacks.cells import Cells, fingerprint
from expunge.attacks.weights import Weights
from expunge.data.collate import Batch, Encoded, Encoder, collate
from expunge.data.example import Example
from expunge.data.order import PairedOrder
from expunge.models.answers import answer_log_probs
from expunge.models.memory import give_back_freed_memory
from expunge.models.scores import ItemScore, greedy, score_items, summarise
from expunge.progress import Progress
from expunge.unlearning.parametrizations.base import Parametrization, Trained

logger = logging.getLogger(__name__)

Place = tuple[float, int]
"""Learning rate and seed of a cell."""


@dataclass(frozen=True)
class Effort:
    """What every cell spends: `max_steps` steps of `batch_size` examples, scored after every `eval_every`; and what it
    may move."""

    max_steps: int
    eval_every: int
    batch_size: int
    parametrization: Parametrization


@dataclass(frozen=True)
class Cell:
    """One finished cell: its curve from step 0, the items at its best point, what the model said at its end."""

    curve: tuple[CurvePoint, ...]
    items: tuple[ItemScore, ...]
    samples: dict[str, str]
    spent: Budget
    seconds: float

    @property
    def best(self) -> CurvePoint:
        """The first point of the highest log-odds."""
        return max(self.curve, key=lambda point: point.log_odds)


_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)


def leader(cells: Sequence[Cell]) -> Cell:
    """The first cell of the highest log-odds."""
    return max(cells, key=lambda cell: cell.best.log_odds)


@dataclass(frozen=True)
class Sweep:
    """One attack on one model that is on loan.

    Args:
        task: name of the attack, under which progress is told.
        model: inside `lent`.
        weights: its untouched weights, with which every cell begins.
        encoder: of prompts and answers.
        train: what the cells train on.
        scored: what they are scored on.
        start: the scores of `scored` before the attack.
        effort: of every cell.
        progress: told of every step.
        twins: made-up twins of scored items, scored whenever these are.
        twin_start: the scores of `twins` before the attack.
    """

    task: str
    model: PreTrainedModel
    weights: Weights
    encoder: Encoder
    train: tuple[Example, ...]
    scored: tuple[Example, ...]
    start: tuple[ItemScore, ...]
    effort: Effort
    progress: Progress
    twins: tuple[Example, ...] = ()
    twin_start: tuple[ItemScore, ...] = ()

    def run(
        self, grid: Sequence[Place], store: Cells, probe: Callable[[PreTrainedModel], T] | None
    ) -> tuple[list[Cell], T | None]:
        """All cells, new or out of `store`, and what `probe` saw at the end of the leading one."""
        self.progress.start(self.task, self.effort.max_steps * len(grid))
        cells: list[Cell] = []
        probed: T | None = None
        again: Place | None = None
        for place in grid:
            stored = self._stored(store, place)
            cells.append(stored or self._train(place))
            if stored is None:
                store[self._key(place)] = _CELL.dump_python(cells[-1], mode="json")
            if cells[-1] is leader(cells) and probe is not None:
                # A cell out of the store leaves no attacked model to look at; if it wins it is trained once more.
                probed, again = (None, place) if stored else (probe(self.model), None)
        if again is not None and probe is not None:
            self._train(again)
            probed = probe(self.model)
        self.progress.finish(self.task)
        return cells, probed

    def allowance(self) -> Budget:
        """The most that one cell can spend."""
        examples = self.effort.max_steps * self.effort.batch_size
        return Budget(self.effort.max_steps, examples, examples * max(len(row.ids) for row in self._encoded))

    def _train(self, place: Place) -> Cell:
        """Fine-tune from the untouched weights; the model is left attacked."""
        began = time.perf_counter()
        self.weights.restore()
        trained = self.effort.parametrization.bind(self.model, place[1])
        try:
            return self._tune(place, trained, began)
        finally:
            trained.fold()

    def _tune(self, place: Place, trained: Trained, began: float) -> Cell:
        optimizer = torch.optim.AdamW(trained.parameters.values(), lr=place[0], weight_decay=0.0, fused=True)
        curve, items, spent = [self._point(place, 0, 0, self.start, self.twin_start)], self.start, Budget()
        for step in range(1, self.effort.max_steps + 1):
            batch = self._batch(place[1], step - 1)
            loss = self._step(optimizer, batch)
            give_back_freed_memory()
            spent += Budget(1, len(batch), int(batch.attention_mask.sum()))
            self.progress.advance(self.task, loss=loss, log_odds=curve[-1].log_odds)
            if not math.isfinite(loss):
                break
            if step % self.effort.eval_every == 0:
                scores = score_items(self.model, self.encoder, self.scored)
                guesses = score_items(self.model, self.encoder, self.twins)
                point = self._point(place, step, spent.examples, scores, guesses)
                if not all(map(math.isfinite, (point.log_odds, *point.twin_log_odds))):
                    break
                if point.log_odds > max(earlier.log_odds for earlier in curve):
                    items = scores
                curve.append(point)
        if spent.steps < self.effort.max_steps:
            logger.warning("%s at %g, seed %d, diverged at step %d.", self.task, *place, spent.steps)
            self.progress.advance(self.task, self.effort.max_steps - spent.steps)
        said = greedy(self.model, self.encoder, [example.prompt for example in self.scored])
        samples = {example.id: text for example, text in zip(self.scored, said, strict=True)}
        return Cell(tuple(curve), items, samples, spent, time.perf_counter() - began)

    def _step(self, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        """One step on the mean cross-entropy of the batch's answer tokens; gives the loss before it."""
        with torch.enable_grad():
            loss = -answer_log_probs(self.model, batch).token.mean()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _batch(self, seed: int, step: int) -> Batch:
        index, _ = PairedOrder(len(self.train), 0, self.effort.batch_size, seed).at(step)
        return collate([self._encoded[i] for i in index], self.encoder.pad_id).to(self.model.device)

    def _point(
        self, place: Place, step: int, examples: int, items: Sequence[ItemScore], twins: Sequence[ItemScore]
    ) -> CurvePoint:
        scores = summarise(items)
        odds, guesses = (tuple(item.log_odds for item in each) for each in (items, twins))
        return CurvePoint(*place, step, examples, scores.accuracy, scores.log_odds, odds, twin_log_odds=guesses)

    def _stored(self, store: Cells, place: Place) -> Cell | None:
        if (value := store.get(self._key(place))) is None:
            return None
        try:
            cell = _CELL.validate_python(value)
        except ValidationError as error:
            logger.warning("A stored cell of %s is damaged and will be run again: %s", self.task, error)
            return None
        self.progress.advance(self.task, self.effort.max_steps)
        return cell

    def _key(self, place: Place) -> str:
        """A name for the cell that no other weights, data or effort can share."""
        return f"{self.task}-{place[0]!r}-{place[1]}-{self._fingerprint}"

    @cached_property
    def _encoded(self) -> list[Encoded]:
        return [self.encoder.encode(example.prompt, example.answer) for example in self.train]

    @cached_property
    def _fingerprint(self) -> str:
        parts: list[object] = [
            self.weights.digest(),
            self.encoder.describe(),
            {**asdict(self.effort), "parametrization": repr(self.effort.parametrization)},
            [example.to_json() for example in self.train],
            [example.to_json() for example in self.scored],
            *([[twin.to_json() for twin in self.twins]] if self.twins else []),
        ]
        return fingerprint(parts)
