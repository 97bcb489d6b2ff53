"""Relearning at the end of a course: tuned on a part of the first request, scored on its rest and on all others.

    merged      every weight of the ordinary checkpoint may move, as an attacker with the weights would have it
    frozen      h <- h - (h Q^T) Q stays at the outputs of the MLPs and cannot be moved: a served model with its hooks
    reapplied   W_down <- (I - Q^T Q) W_down after every step of the attacker: a served model that enforces it

A projection of whole blocks is always frozen: its model cannot be saved without it. The fourth setting, hooks deleted
by an attacker, needs no attack: the projections are all that `mrp` trains, so what is left is the model of the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from expunge.attacks.base import CurvePoint, leads
from expunge.attacks.cells import open_cells
from expunge.attacks.relearn import RelearnHarmful
from expunge.attacks.sweep import Effort, Sweep, leader
from expunge.attacks.weights import lent
from expunge.continual.record import Relearnt, SetScore, Setting, Twinned, twinned
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

Rows = Mapping[int, Tensor]


def relearn(
    model: PreTrainedModel,
    encoder: Encoder,
    stream: Stream,
    twins: Mapping[str, Example],
    attack: RelearnHarmful,
    setting: Setting,
    removed: Rows,
    progress: Progress,
    cells: Path,
) -> Relearnt:
    """Fine-tune `model`, which is left as it was, on a part of the first request in one setting.

    Args:
        twins: made-up twins, by the id of their item; scored beside the items.
        attack: its grid, steps, and the fraction of the request.
        removed: Q by block, of MLP outputs; not looked at in setting "merged".
        cells: where finished cells are kept.
    """
    began = time.monotonic()
    first = stream.ids[0]
    train, rest = attack.split(stream.requests[first])
    sets = {first: stream.scored_on(first) if stream.scored else rest}
    sets |= {name: stream.scored_on(name) for name in stream.ids[1:]}
    scored = tuple(example for examples in sets.values() for example in examples)
    with lent(model) as weights, enforced(model, setting, removed):
        start = score_items(model, encoder, scored)
        beside = {example.id: twins[example.id] for example in scored if example.id in twins}
        asked = tuple(beside.values())
        effort = Effort(attack.max_steps, attack.eval_every, attack.batch_size, Full())
        sweep = Sweep(
            f"relearn-{setting}",
            model,
            weights,
            encoder,
            train,
            scored,
            start,
            effort,
            progress,
            twins=asked,
            twin_start=score_items(model, encoder, asked),
        )
        grid = list(product(attack.learning_rates, attack.seeds))
        found, _ = sweep.run(grid, open_cells(cells), None)
    best = leader(found)
    items: Iterator[ItemScore] = iter(best.items)
    points = [point for cell in found for point in cell.curve]
    return Relearnt(
        setting=setting,
        request=first,
        learning_rate=best.best.learning_rate,
        step=best.best.step,
        curve=tuple((p.learning_rate, p.step, p.log_odds) for p in points),
        sets={name: SetScore.of([next(items) for _ in examples]) for name, examples in sets.items()},
        seconds=time.monotonic() - began,
        twins=_leading(points, sets, tuple(beside)),
    )


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
