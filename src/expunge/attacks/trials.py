"""The engine of every attack that does not train: try changed models or changed questions, keep the best.

Each trial is one variant of the model (its weights rounded, some of them removed, its states pushed) or of the
questions (other words, examples before them), and the score is the highest over all trials, so that it can only grow
with their number.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from expunge.attacks.base import Attack, Attacked, AttackResult, CurvePoint, T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.material import Material
from expunge.attacks.weights import Weights, lent
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.twins import asked_alike
from expunge.models.scores import ItemScore, greedy, numbers, score_items, summarise

Questions = Sequence[Example]


def as_they_are(questions: Questions) -> Questions:
    """No change."""
    return questions


@dataclass(frozen=True)
class Trial:
    """One variant of the model or of the questions.

    Args:
        called: what is done, in words.
        change: enters the variant of the model and leaves it again, as often as asked; whatever it leaves changed in
            the weights is put back.
        ask: the scored items in other words, in the same order and with the same ids and answers.
        spent: what finding it cost, beside being one more variant.
        encoder: puts the questions to the model; that of the target where absent.
    """

    called: str
    change: Callable[[], AbstractContextManager[object]] = nullcontext
    ask: Callable[[Questions], Questions] = as_they_are
    spent: Budget = field(default_factory=Budget)
    encoder: Encoder | None = None


class Trials(Attack, ABC):
    """An attack whose points are trials; the first point of its curve is the model as it is."""

    @abstractmethod
    def count(self, target: Target[T]) -> int:
        """How many trials there will be; InputError where the request or the model lacks what they need."""

    @abstractmethod
    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """The trials, one after another; the model is untouched whenever the next one is asked for."""

    def material(self, target: Target[T]) -> Material:
        """Nothing to train on, and all forget items."""
        return Material((), target.request.forget)

    def allowance(self, target: Target[T]) -> Budget:
        """The most that all trials can spend."""
        return Budget(variants=self.count(target))

    def notes(self, target: Target[T]) -> tuple[str, ...]:
        """Choices that a reader has to know of."""
        return ()

    def launch(self, target: Target[T]) -> Attacked[T]:
        """A trial is scored as fast as it would be read back, so none is kept in `cells`."""
        model, encoder, began = target.model, target.encoder, time.perf_counter()
        material = self.material(target)
        material.require_scorable(self.name)
        scored, total = material.scored, self.count(target)
        # An attack that searches for an answer finds one for a twin too, and must search anew for it.
        twinned = {} if self.control_only else target.twinned(scored)
        best, spent, silent = Trial("as it is"), Budget(), []
        with lent(model) as weights:
            start = items = numbers(score_items(model, encoder, scored))
            curve = [_point(0, best.called, start, score_items(model, encoder, list(twinned.values())))]
            target.progress.start(self.name, total)
            for place, trial in enumerate(self.trials(target, weights), 1):
                with trial.change():
                    read, asked = trial.encoder or encoder, trial.ask(scored)
                    scores = score_items(model, read, asked)
                    guesses = score_items(model, read, _twins_asked(asked, scored, twinned))
                weights.restore()
                spent += trial.spent + Budget(variants=1)
                point = _point(place, trial.called, scores, guesses)
                target.progress.advance(self.name, log_odds=point.log_odds)
                if not math.isfinite(point.log_odds):
                    silent.append(f"{trial.called} leaves a model whose answers have no number.")
                    continue
                if point.log_odds > max(earlier.log_odds for earlier in curve):
                    best, items = trial, scores
                curve.append(point)
            with best.change():
                said = greedy(model, best.encoder or encoder, [example.prompt for example in best.ask(scored)])
                probed = None if target.probe is None else target.probe(model)
        target.progress.finish(self.name)
        ids = tuple(example.id for example in scored)
        result = AttackResult(
            name=self.name,
            settings=self.settings(),
            curve=tuple(curve),
            start=summarise(start),
            best=max(curve, key=lambda point: point.log_odds),
            best_accuracy=max(curve, key=lambda point: point.accuracy),
            items=tuple(items),
            trained_ids=tuple(example.id for example in material.train),
            held_out_ids=ids,
            samples=dict(zip(ids, said, strict=True)),
            allowed=self.allowance(target),
            spent=spent,
            notes=(*material.notes, *self.notes(target), *silent),
            seconds=time.perf_counter() - began,
            twin_ids={item: one.id for item, one in twinned.items()},
        )
        return Attacked(result, probed)


@dataclass(frozen=True)
class Wear(Trials):
    """Trials that take knowledge from every model; what they leave of the original says what theirs is worth.

    Args:
        original: whether they are made on the original too, where it is at hand.
    """

    original: bool = field(default=True, kw_only=True)


def _twins_asked(asked: Questions, scored: Questions, twinned: Mapping[str, Example]) -> list[Example]:
    """The twins, in the words in which their items are asked."""
    pairs = zip(asked, scored, strict=True)
    return [asked_alike(words, item, twinned[item.id]) for words, item in pairs if item.id in twinned]


def _point(place: int, called: str, items: Sequence[ItemScore], twins: Sequence[ItemScore]) -> CurvePoint:
    scores = summarise(items)
    odds, guesses = (tuple(item.log_odds for item in each) for each in (items, twins))
    return CurvePoint(0.0, 0, place, 0, scores.accuracy, scores.log_odds, odds, called, guesses)
