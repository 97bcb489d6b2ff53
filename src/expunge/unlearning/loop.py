"""The one training loop: step, score, write, until the facts are forgotten or the budget is spent.

Deterministic: dropout is off, and what a step does depends on its number and the weights alone; so a run that is cut
anywhere and taken up again ends in the same bits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.collate import Encoded, Encoder
from expunge.data.distractors import require_options
from expunge.data.example import Example
from expunge.data.order import PairedOrder
from expunge.data.sources import instructions
from expunge.data.twins import held_twins
from expunge.errors import InputError, NonFiniteLoss, NotANumber
from expunge.models.architecture import describe, readout, width
from expunge.models.memory import give_back_freed_memory, peak_bytes
from expunge.models.precision import require_digits
from expunge.models.scores import Scores, choices, numbers, score_items, summarise
from expunge.progress import Progress, Silent
from expunge.request import Request
from expunge.unlearning.anchors import anchors
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.batches import Grouped, Owned, StepBatches
from expunge.unlearning.identity import identity
from expunge.unlearning.interrupts import deferred_interrupts
from expunge.unlearning.landing import POINTS, Landing
from expunge.unlearning.methods import Method, build_method
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.objectives.base import Objective
from expunge.unlearning.parametrizations.base import Material, Trained
from expunge.unlearning.parts import build
from expunge.unlearning.processes import Processes, join_processes
from expunge.unlearning.session import Keeper, Session
from expunge.unlearning.start import StartCache, cache_start
from expunge.unlearning.step import Stepper, adamw
from expunge.unlearning.stopping import StopReason, StopRule, accuracy_wanted
from expunge.unlearning.transforms.base import BoundTransform, Site

_log = logging.getLogger(__name__)
TASK = "unlearn"


@dataclass(frozen=True, slots=True)
class UnlearnResult:
    """What a run did.

    Args:
        steps: optimizer steps made.
        stop_reason: why it ended.
        history: one entry for the untouched model, then one per step.
        seconds: wall time of the loop, the earlier parts of a resumed run included.
        peak_bytes: the most memory that the process has held.
        final: scores of the forget items after the last step: of those with options, if any has.
        removed: what a projection removed, by block.
        carried: what the next request must know of this one, by name: the file `earlier` of its parametrization.
        trained: how many numbers were trained.
    """

    steps: int
    stop_reason: StopReason
    history: tuple[StepMetrics, ...]
    seconds: float
    peak_bytes: int
    final: Scores
    removed: Mapping[int, Tensor] = field(default_factory=dict)
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    trained: int = 0


def unlearn(
    model: PreTrainedModel,
    encoder: Encoder,
    request: Request,
    method: Method | str,
    arguments: UnlearnArguments | None = None,
    *,
    output: Path | None = None,
    progress: Progress | None = None,
) -> UnlearnResult:
    """Take `request.forget` out of `model`, in place, until it is forgotten or the budget is spent.

    With an `output` folder, `metrics.jsonl` and `checkpoints` are kept there, and a run cut short (Ctrl-C, a kill, a
    full disk) goes on from its newest checkpoint when called again with the same model and arguments. The checkpoints
    stay until the caller, who has saved the model, deletes them. However the run ends, the model is an ordinary one
    again, with the weights of the last good step.

    Raises:
        InputError: method, data or model do not go together, or the output holds another run's checkpoints.
        NonFiniteLoss: the loss or its gradient became NaN or infinite, and its step was not made; or the scores became
            NaN, which finite weights can only do by overflow in a small dtype.
        ResourceError: the disk is full.
    """
    chosen = build_method(method) if isinstance(method, str) else method
    return train(
        model,
        encoder,
        request.forget,
        request.retain,
        chosen,
        arguments or build(UnlearnArguments, chosen.loop),
        hold=request.hold,
        output=output,
        progress=progress or Silent(),
    )


def train(
    model: PreTrainedModel,
    encoder: Encoder,
    forget: Sequence[Example],
    retain: Sequence[Example],
    method: Method,
    arguments: UnlearnArguments,
    *,
    hold: Sequence[Example] = (),
    output: Path | None,
    progress: Progress,
) -> UnlearnResult:
    """As `unlearn`, on examples. Without a forget example nothing is done, whatever there is to retain."""
    if not forget:
        nothing = Scores(math.nan, math.nan, math.nan, math.nan, 0)
        return UnlearnResult(0, StopReason.NOTHING_TO_FORGET, (), 0.0, peak_bytes(), nothing)
    processes, device = join_processes()
    if processes.world > 1:
        model.to(device)  # type: ignore[arg-type]
    model.train(False)
    batches = step_batches(model, encoder, forget, retain, method, arguments, processes, hold)
    name = identity(method, arguments, batches, model) if output else {}
    trained = method.parametrization.bind(model, arguments.seed, _material(batches, encoder, len(forget)))
    try:
        require_digits("The weights to train", trained.parameters.values())
        # Where the run begins, which `fused` lays elsewhere; before a checkpoint replaces the weights.
        start = cache_start(method.objective, model, readout(model), batches, arguments.max_steps)
        stepper = make_stepper(model, trained, method, batches, start, arguments)
        graded = tuple(example for example in forget if example.options)
        landing = _landing(trained, method.objective, arguments, graded) if graded else None
        session = Session(trained.parameters, stepper.optimizer, stepper.transforms, landing)
        history = session.resume(output, name) if output else []
        if history and history[-1].step:
            trained.set_to_work()
        keeper = Keeper(session, output if processes.main else None, name, arguments, history)
        rule = StopRule.of(arguments, graded, None if start.block is not None else width(start.read.head))
        score = partial(_scores, model, encoder, graded or forget)
        result = _Loop(stepper, rule, landing, keeper, score, progress, history).run()
    finally:
        numbers = sum(p.numel() for p in trained.parameters.values())
        trained.fold()
    return replace(result, removed=trained.removed(), carried=trained.carried(), trained=numbers)


class _Loop:
    """Steps until the rule says stop; `history` is what an earlier part of the run has measured."""

    def __init__(
        self,
        stepper: Stepper,
        rule: StopRule,
        landing: Landing | None,
        keeper: Keeper,
        score: Callable[[], Scores],
        progress: Progress,
        history: list[StepMetrics],
    ) -> None:
        self._stepper, self._rule, self._landing = stepper, rule, landing
        self._keeper, self._score = keeper, score
        self._progress, self._history = progress, history
        self._scores: Scores | None = None
        self._begin = time.monotonic() - (history[-1].seconds if history else 0.0)

    def run(self) -> UnlearnResult:
        """The result, once the run has ended."""
        self._progress.start(TASK, self._stepper.arguments.max_steps)
        reason = self._until_stopped()
        self._progress.finish(TASK)
        last, final = self._history[-1], self._scores or self._now()
        return UnlearnResult(last.step, reason, tuple(self._history), last.seconds, peak_bytes(), final)

    def _until_stopped(self) -> StopReason:
        with deferred_interrupts() as interrupts:
            try:
                if self._history:
                    self._progress.advance(TASK, self._history[-1].step)
                else:
                    self._note(StepMetrics(0, 0.0))
                while (reason := self._rule.reason(self._history)) is None:
                    self._note(self._stepper.step(self._history[-1].step))
                    self._advance()
                    give_back_freed_memory()
                    interrupts.check()
            except KeyboardInterrupt:
                if self._history and not interrupts.torn:
                    self._keeper.save(self._history)
                raise
        return reason

    def _note(self, metrics: StepMetrics) -> None:
        """Score if it is time to, and make `metrics` the last line of the history."""
        arguments = self._stepper.arguments
        self._scores = None
        if metrics.step % arguments.eval_steps == 0 or metrics.step == arguments.max_steps:
            landed, self._scores = self._scored(metrics.step)
            metrics = replace(
                metrics,
                landed=landed,
                forget_accuracy=self._scores.accuracy,
                forget_log_odds=None if math.isnan(self._scores.log_odds) else self._scores.log_odds,
                forget_probability=self._scores.probability,
            )
        self._history.append(replace(metrics, seconds=self._seconds()))
        self._keeper.note(self._history)

    def _scored(self, step: int) -> tuple[float | None, Scores]:
        """The scores of the present weights or, if these went past the target, of those gone back to."""
        scores = self._now()
        if self._landing is None:
            return None, scores
        if self._landing.near(scores):
            self._landing.keep()
        elif step >= self._stepper.arguments.least_steps and self._landing.overshot(scores):
            return self._landing.land(self._now)
        return None, scores

    def _now(self) -> Scores:
        """The scores of the present weights; what was no number before anything was done is the model's own fault."""
        try:
            return self._score()
        except NotANumber as error:
            if not self._history:
                raise
            raise NonFiniteLoss(
                "The model's answers to the forget items became NaN.", fix="Lower the learning rate."
            ) from error

    def _seconds(self) -> float:
        """Time since the start, the main process's on all of them, as it may end the run."""
        processes = self._stepper.batches.processes
        mine = (time.monotonic() - self._begin) if processes.main else 0.0
        return float(processes.sum(torch.tensor(mine, dtype=torch.float64, device=self._stepper.batches.device)))

    def _advance(self) -> None:
        last = self._history[-1]
        shown = {"loss": last.loss, "accuracy": last.forget_accuracy, "log_odds": last.forget_log_odds}
        self._progress.advance(TASK, 1, **{name: value for name, value in shown.items() if value is not None})


def step_batches(
    model: PreTrainedModel,
    encoder: Encoder,
    forget: Sequence[Example],
    retain: Sequence[Example],
    method: Method,
    arguments: UnlearnArguments,
    processes: Processes,
    hold: Sequence[Example] = (),
) -> StepBatches:
    """The encoded items in the order of the run; no retain and no held items where the objective uses none.

    Held items without wrong options cannot be held at ignorance, and are left out.
    """
    used = retain if method.objective.uses_retain else ()
    held = [example for example in hold if example.options] if method.objective.holds_earlier else ()
    per_forward = arguments.per_device_train_batch_size
    size = per_forward * arguments.gradient_accumulation_steps * processes.world
    if held and size == 1:
        raise InputError(
            "A step of one item has no room for facts of earlier requests.",
            "per_device_train_batch_size, gradient_accumulation_steps",
            "Take two items a step or more, or leave those facts to themselves: objective.hold_earlier=false.",
        )
    order = PairedOrder(len(forget), len(used), size, arguments.seed, len(held))
    forget = (*forget, *held)
    gone, kept = ([encoder.encode(example.prompt, example.answer) for example in items] for items in (forget, used))
    beside = _after_prompts(encoder, forget, [method.objective.companions(example) for example in forget])
    wanted = forget if any(transform.wants_options for transform in method.transforms) else ()
    require_options(wanted)
    twins = _twins(encoder, forget, used, method.objective.twins)
    n = method.objective.held_options
    return StepBatches(
        gone,
        kept,
        order,
        per_forward,
        encoder.pad_id,
        processes,
        model.device,
        beside if any(beside) else (),
        twins,
        [anchors(own, beside[item][:n], item % 2) for item, own in enumerate(twins)],
        _after_prompts(encoder, wanted, [example.options for example in wanted]),
    )


def _after_prompts(encoder: Encoder, examples: Sequence[Example], texts: Sequence[tuple[str, ...]]) -> Owned:
    """For each example these texts as answers to its prompt."""
    return [tuple(encoder.encode(e.prompt, text) for text in own) for e, own in zip(examples, texts, strict=True)]


def _twins(encoder: Encoder, forget: Sequence[Example], retain: Sequence[Example], n: int) -> Grouped:
    """Of `n` twins of each forget item what `choices` gives; empty where there is none."""
    found = [tuple(tuple(choices(encoder, twin)) for twin in each) for each in held_twins(forget, retain, n)]
    if n and not any(found):
        _log.warning("No forget item names its subject, so nothing holds what is said of others; give it as `subject`.")
    return found if any(found) else ()


def _material(batches: StepBatches, encoder: Encoder, n_forget: int) -> Material:
    """The items of the run, as a parametrization may look at them: not those of earlier requests."""

    def everyday() -> list[Encoded]:
        return [encoder.encode(e.prompt, e.answer) for e in instructions(encoder.question)]

    special = frozenset(encoder.tokenizer.all_special_ids)
    return Material(
        batches.forget[:n_forget], batches.retain, batches.pad_id, special, 2 * batches.per_forward, everyday
    )


def make_stepper(
    model: PreTrainedModel,
    trained: Trained,
    method: Method,
    batches: StepBatches,
    start: StartCache,
    arguments: UnlearnArguments,
) -> Stepper:
    """The machine that makes steps, its transforms bound to what is trained."""
    transforms: list[BoundTransform] = []
    if method.transforms:
        processes = batches.processes
        site = Site(model, describe(model), trained.parameters, processes.sum, processes.world, method.transforms)
        transforms = [transform.bind(site) for transform in method.transforms]
    optimizer = adamw(trained.parameters, arguments)
    return Stepper(
        model,
        trained.parameters,
        method.objective,
        transforms,
        optimizer,
        batches,
        start,
        arguments,
        trained.set_to_work,
    )


def _landing(
    trained: Trained, objective: Objective, arguments: UnlearnArguments, graded: Sequence[Example]
) -> Landing | None:
    """What brings the run back to the score asked for; None where none is, or where both are."""
    odds, accuracy, within = arguments.stop_log_odds, accuracy_wanted(arguments, graded), arguments.stop_within
    if within is None or (odds is None) == (accuracy is None):
        return None
    if accuracy is None:
        assert odds is not None
        return Landing(trained.parameters, lambda scores: scores.log_odds, odds, within, objective.comes_back)
    points = max(POINTS, 1 / len(graded))
    return Landing(trained.parameters, lambda scores: scores.accuracy, accuracy, points, objective.comes_back)


def _scores(model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example]) -> Scores:
    """The means over `examples`, which every process scores in full: so all of them stop in the same step."""
    return summarise(numbers(score_items(model, encoder, examples)))
