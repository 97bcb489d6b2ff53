"""Relearning at the end of a course: tuned on a part of the first request, scored on its rest and on all others.

    merged      every weight of the ordinary checkpoint may move, as an attacker with the weights would have it
    frozen      h <- h - (h Q^T) Q stays at the outputs of the MLPs and cannot be moved: a served model with its hooks
    reapplied   W_down <- (I - Q^T Q) W_down after every step of the attacker: a served model that enforces it
    deleted     the attacker takes the hooks away and tunes nothing

A projection of whole blocks is always frozen: its model cannot be saved without it. Where the projections are all that
is trained, what is left without them is the model of the start, bit for bit, so its scores are those of "deleted".

A gold model, where there is one, is attacked alike, as it never had projections: merged, and read at the same point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Self

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from expunge.attacks.base import CurvePoint, leads
from expunge.attacks.cells import open_cells
from expunge.attacks.relearn import RelearnHarmful
from expunge.attacks.sweep import Cell, Effort, Sweep, leader
from expunge.attacks.weights import lent
from expunge.continual.record import (
    HELD_OUT,
    RETAIN,
    Moment,
    Relearnt,
    Rest,
    SetScore,
    Setting,
    Twinned,
    twinned,
)
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.architecture import base_linear, describe
from expunge.models.projections import project
from expunge.models.scores import ItemScore, score_items
from expunge.progress import Progress
from expunge.stream import Stream
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.projector import fold_projection

SETTINGS: Final[tuple[Setting, ...]] = ("merged", "frozen", "reapplied")
"""Those in which the attacker trains."""

Rows = Mapping[int, Tensor]


@dataclass(frozen=True)
class Asked:
    """What the attacker tunes on, and what is asked afterwards.

    Args:
        train: a part of the first request.
        sets: by request, in order: the rest of the first one and all of the others; where a stream is scored on other
            questions, those.
        twins: made-up twins of the questions, by the id of their item.
    """

    train: tuple[Example, ...]
    sets: Mapping[str, tuple[Example, ...]]
    twins: Mapping[str, Example]

    @classmethod
    def of(cls, stream: Stream, attack: RelearnHarmful, twins: Mapping[str, Example]) -> Self:
        """Out of the stream, by the split of the attack."""
        first = stream.ids[0]
        train, rest = attack.split(stream.requests[first])
        sets = {name: stream.scored_on(name) for name in stream.ids}
        if not stream.scored:
            sets[first] = rest
        asked = (example.id for examples in sets.values() for example in examples)
        return cls(train, sets, {item: twins[item] for item in asked if item in twins})

    @property
    def first(self) -> str:
        """The request that is tuned on."""
        return next(iter(self.sets))

    @property
    def scored(self) -> tuple[Example, ...]:
        """All questions, set after set."""
        return tuple(example for examples in self.sets.values() for example in examples)


def relearn(
    model: PreTrainedModel,
    encoder: Encoder,
    asked: Asked,
    attack: RelearnHarmful,
    setting: Setting,
    removed: Rows,
    progress: Progress,
    cells: Path,
) -> list[Cell]:
    """Fine-tune `model`, which is left as it was, on a part of the first request, in every cell of the attack's grid.

    Args:
        asked: what is trained on and scored.
        attack: its grid and steps.
        setting: how projections hold meanwhile.
        removed: Q by block, of MLP outputs; not looked at in setting "merged".
        cells: where finished cells are kept.
    """
    with lent(model) as weights, enforced(model, setting, removed):
        twins = tuple(asked.twins.values())
        sweep = Sweep(
            f"relearn-{setting}",
            model,
            weights,
            encoder,
            asked.train,
            asked.scored,
            score_items(model, encoder, asked.scored),
            Effort(attack.max_steps, attack.eval_every, attack.batch_size, Full()),
            progress,
            twins=twins,
            twin_start=score_items(model, encoder, twins),
        )
        found, _ = sweep.run(list(product(attack.learning_rates, attack.seeds)), open_cells(cells), None)
    return found


def outcome(
    setting: Setting, asked: Asked, cells: Sequence[Cell], rest: Rest, control: Sequence[Cell] = ()
) -> Relearnt:
    """What came back, for the record.

    Args:
        cells: of the attack (`relearn`).
        rest: what the questions of the first request are measured from.
        control: the cells of a gold model that was attacked alike.
    """
    best = leader(cells)
    items: Iterator[ItemScore] = iter(best.items)
    points = [point for cell in cells for point in cell.curve]
    return Relearnt(
        setting=setting,
        request=asked.first,
        learning_rate=best.best.learning_rate,
        step=best.best.step,
        curve=tuple((p.learning_rate, p.step, p.log_odds) for p in points),
        sets={name: SetScore.of([next(items) for _ in examples]) for name, examples in asked.sets.items()},
        seconds=sum(cell.seconds for cell in cells),
        twins=_leading(points, asked.sets, tuple(asked.twins)),
        control=_beside(control, best.best, asked.sets) if control else {},
        rest=rest,
    )


def deleted(start: Moment, request: str, rest: Rest) -> Relearnt:
    """What an attacker has who takes the hooks away, where their rows alone were trained: the model of the start."""
    asked = {name: own for name, own in start.sets.items() if name not in (RETAIN, HELD_OUT)}
    twins = {name: own for name, own in start.twins.items() if name != request}
    return Relearnt(
        setting="deleted",
        request=request,
        learning_rate=0.0,
        step=0,
        curve=(),
        sets={**asked, request: rest.start},
        seconds=0.0,
        twins={**twins, **({request: rest.twins} if rest.twins else {})},
        rest=rest,
    )


def rest_of(asked: Asked, encoder: Encoder, start: PreTrainedModel, gold: PreTrainedModel | None) -> Rest:
    """What the questions of the first request are measured from."""
    questions = asked.sets[asked.first]
    beside = {example.id: asked.twins[example.id] for example in questions if example.id in asked.twins}
    items = score_items(start, encoder, questions)
    guesses = score_items(start, encoder, tuple(beside.values()))
    odds = {asked.first: {item.id: item.log_odds for item in items}}
    return Rest(
        start=SetScore.of(items),
        twins=twinned(odds, {item: score.log_odds for item, score in zip(beside, guesses, strict=True)}).get(
            asked.first
        ),
        gold=SetScore.of(score_items(gold, encoder, questions)) if gold else None,
    )


def _beside(control: Sequence[Cell], best: CurvePoint, sets: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Log-odds of every set in the control at the same rate, seed and step; where it diverged, at its last step."""
    cell = next(own for own in control if own.best.learning_rate == best.learning_rate and own.best.seed == best.seed)
    point = next((point for point in cell.curve if point.step == best.step), cell.curve[-1])
    odds = iter(point.item_log_odds)
    return {name: fmean(next(odds) for _ in examples) for name, examples in sets.items()}


def _leading(
    points: Sequence[CurvePoint], sets: Mapping[str, Sequence[Example]], beside: Sequence[str]
) -> dict[str, Twinned]:
    """Each set beside its twins, at the point where the items `beside`, which have twins, lead these most. The items of
    all sets were scored in the order of the sets."""
    if not beside:
        return {}
    ids = [example.id for examples in sets.values() for example in examples]
    _, best = max(zip(leads(points, ids, beside), points, strict=True), key=itemgetter(0))
    odds = dict(zip(ids, best.item_log_odds, strict=True))
    guesses = dict(zip(beside, best.twin_log_odds, strict=True))
    return twinned({name: {e.id: odds[e.id] for e in examples} for name, examples in sets.items()}, guesses)


@contextmanager
def enforced(model: PreTrainedModel, setting: Setting, removed: Rows) -> Iterator[None]:
    """Inside, the projections of MLP outputs hold as `setting` says."""
    downs = {block: base_linear(linears["down"]) for block, linears in enumerate(describe(model).linears)}
    if setting == "merged":
        handles: list[Any] = []
    elif setting == "frozen":
        handles = [downs[block].register_forward_hook(partial(_hook, rows)) for block, rows in removed.items()]
    else:

        def fold(*_: Any) -> None:
            for block, rows in removed.items():
                fold_projection(downs[block], rows.to(downs[block].weight.device))

        handles = [register_optimizer_step_post_hook(fold)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rows: Tensor, module: object, args: object, out: Tensor) -> Tensor:
    return project(out, rows.to(out.device))
