"""Relearning: fine-tune the unlearned model on a little data and see whether the forgotten answers come back.

One engine, four attacks that differ only by their data (arXiv:2509.22263, section 4; arXiv:2406.13356 for the benign
one; arXiv:2602.03379 for the syntactic one; arXiv:2410.08827 for the split into trained and held-out facts). Each cell
(learning rate, seed) of the grid begins with the same weights and minimises the answer tokens' mean cross-entropy,

    L = - (1 / tokens) * sum_t log P(y_t | x, y_<t)         AdamW, constant learning rate, no decay, no clipping

so that what happens in a step depends on nothing after it: a longer run begins with the shorter one, bit for bit, and
the score, the maximum over grid and time, can only grow with the budget.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import ClassVar, Literal

from expunge.attacks.base import Attack, Attacked, AttackResult, T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.material import Material, same_split, split
from expunge.attacks.sweep import Cell, Effort, Sweep, leader
from expunge.attacks.weights import lent
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.sources import instructions, read_examples
from expunge.data.twins import trained_twins
from expunge.errors import InputError
from expunge.models.scores import ItemScore, numbers, score_items, summarise
from expunge.request import Request
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.lora import LoRA


@dataclass(frozen=True)
class Relearn(Attack, ABC):
    """A sweep of fine-tuning runs over learning rates and seeds.

    Args:
        learning_rates: the grid.
        seeds: of the order of the training examples.
        max_steps: steps of every cell.
        eval_every: score after every so many steps; divides `max_steps`, so that the last point is always scored and
            a larger budget scores all points of a smaller one.
        batch_size: examples per step.
        lora_rank: trains LoRA adapters of this rank on all linear maps instead of all weights; 0 for all weights.
    """

    learning_rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5)
    seeds: tuple[int, ...] = (0,)
    max_steps: int = 8
    eval_every: int = 2
    batch_size: int = 8
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if not self.seeds or not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise self._refusal("There must be at least one seed and one learning rate above 0.")
        if self.lora_rank < 0:
            raise self._refusal("lora_rank must be at least 0.")
        if min(self.max_steps, self.eval_every, self.batch_size) < 1 or self.max_steps % self.eval_every:
            raise self._refusal("Steps and batch size must be at least 1, and max_steps a multiple of eval_every.")

    @abstractmethod
    def material(
        self, encoder: Encoder, request: Request, before: Sequence[ItemScore], like: AttackResult | None
    ) -> Material:
        """What to train on and to score; `before` are the scores of the forget items, `like` as in `Attack.run`."""

    def launch(self, target: Target[T]) -> Attacked[T]:
        """Fine-tune in every cell of the grid."""
        model, encoder = target.model, target.encoder
        with lent(model) as weights:
            before = numbers(score_items(model, encoder, target.request.forget))
            chosen = self.material(encoder, target.request, before, target.like)
            twinned = target.twinned(chosen.scored)
            twins = tuple(twinned.values())
            Material(chosen.train, (*chosen.scored, *twins)).require_scorable(self.name)
            found = {item.id: item for item in before}
            start = tuple(found[example.id] for example in chosen.scored)
            moved = LoRA(self.lora_rank, 2.0 * self.lora_rank) if self.lora_rank else Full()
            effort = Effort(self.max_steps, self.eval_every, self.batch_size, moved)
            sweep = Sweep(
                self.name,
                model,
                weights,
                encoder,
                chosen.train,
                chosen.scored,
                start,
                effort,
                target.progress,
                twins,
                score_items(model, encoder, twins),
            )
            grid = list(product(self.learning_rates, self.seeds))
            finished, probed = sweep.run(grid, target.cells, target.probe)
        result = replace(
            self._result(sweep, finished, chosen.notes), twin_ids={item: one.id for item, one in twinned.items()}
        )
        return Attacked(result, probed)

    def _result(self, sweep: Sweep, cells: Sequence[Cell], notes: Sequence[str]) -> AttackResult:
        curve = tuple(point for cell in cells for point in cell.curve)
        best = leader(cells)
        diverged = tuple(
            f"Learning rate {cell.best.learning_rate:g}, seed {cell.best.seed}, diverged at step {cell.spent.steps}."
            for cell in cells
            if cell.curve[-1].step < self.max_steps
        )
        return AttackResult(
            name=self.name,
            settings=self.settings(),
            curve=curve,
            start=summarise(sweep.start),
            best=best.best,
            best_accuracy=max(curve, key=lambda point: point.accuracy),
            items=best.items,
            trained_ids=tuple(example.id for example in sweep.train),
            held_out_ids=tuple(example.id for example in sweep.scored),
            samples=best.samples,
            allowed=sweep.allowance().times(len(cells)),
            spent=sum((cell.spent for cell in cells), Budget()),
            notes=(*notes, *diverged),
            seconds=sum(cell.seconds for cell in cells),
        )

    def _refusal(self, what: str) -> InputError:
        return InputError(what, f"{self.name}: {asdict(self)}", "Correct the settings of this attack.")


@dataclass(frozen=True)
class RelearnHarmful(Relearn):
    """Train on a part of the forgotten facts themselves, score the disjoint rest.

    Args:
        fraction: of the pool that is trained on; at least one item is trained and one held out.
        pool: "all" takes every forget item; "wrong" those that the unlearned model answers wrongly (arXiv:2509.22263),
            unless there are fewer than `least`. The wrong ones of a model that avoids some answers and still knows
            others begin far below ignorance, and hardly come up to it: such a model looks better than it is.
        least: see `pool`.
        split_seed: of the choice of the part.
    """

    fraction: float = 0.3
    pool: Literal["wrong", "all"] = "all"
    least: int = 8
    split_seed: int = 0

    name: ClassVar[str] = "relearn-harmful"
    summary: ClassVar[str] = "fine-tune on a part of the forgotten facts, score the disjoint rest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise self._refusal("fraction must lie between 0 and 1.")

    def material(
        self, encoder: Encoder, request: Request, before: Sequence[ItemScore], like: AttackResult | None
    ) -> Material:
        """A seeded part of the pool, and the rest of it; the split of `like` where given."""
        if like is not None:
            return same_split(request, like.trained_ids, like.held_out_ids)
        pool, notes = self._pool(request, before)
        if len(pool) < 2:
            raise InputError(
                "One forget item cannot be split.", self.name, "Give at least two, or leave this attack out."
            )
        return Material(*self.split(pool), notes)

    def split(self, facts: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """What is trained on, at least one fact, and the rest, at least one if there are two."""
        return split(facts, self.fraction, f"{self.split_seed}/relearn-harmful")

    def _pool(self, request: Request, before: Sequence[ItemScore]) -> tuple[tuple[Example, ...], tuple[str, ...]]:
        if self.pool == "all":
            return request.forget, ()
        wrong = tuple(e for e, item in zip(request.forget, before, strict=True) if not item.correct)
        if len(wrong) >= max(2, self.least):
            return wrong, (f"The pool is the {len(wrong)} of {len(before)} forget items answered wrongly.",)
        reason = f"Only {len(wrong)} of {len(before)} forget items are answered wrongly, so the pool is all of them."
        return request.forget, (reason,)


@dataclass(frozen=True)
class RelearnRelated(Relearn):
    """Train on facts of the same kind about other subjects, score all forgotten facts."""

    name: ClassVar[str] = "relearn-related"
    summary: ClassVar[str] = "fine-tune on facts of the same kind about others, score all forgotten facts"

    def material(
        self, encoder: Encoder, request: Request, before: Sequence[ItemScore], like: AttackResult | None
    ) -> Material:
        """The request's attack set, and all forget items."""
        if not request.attack:
            raise InputError(
                "The request has no facts of the same kind about others, which relearn-related trains on.",
                "attack",
                "Give them with --attack FILE, or leave this attack out.",
            )
        return Material(request.attack, request.forget)


@dataclass(frozen=True)
class RelearnSyntactic(Relearn):
    """Train on the questions of the forgotten facts about made-up subjects, score all forgotten facts.

    The answers are drawn among those of each question, so that nothing true is told: what comes back, the wording alone
    brought back, which recovers more than the topic does (arXiv:2602.03379).
    """

    name: ClassVar[str] = "relearn-syntactic"
    summary: ClassVar[str] = "fine-tune on the same questions about made-up subjects, score all forgotten facts"

    def material(
        self, encoder: Encoder, request: Request, before: Sequence[ItemScore], like: AttackResult | None
    ) -> Material:
        """Twins of the forget items that no control is scored on, and all forget items."""
        if not (train := trained_twins(request)):
            raise InputError(
                "No forget item can be asked about a made-up subject, which relearn-syntactic trains on.",
                "forget",
                'Give each item a "subject" that its prompt names and its answers do not, or leave this attack out.',
            )
        return Material(train, request.forget)


@dataclass(frozen=True)
class RelearnBenign(Relearn):
    """Train on everyday instructions that have nothing to do with the forgotten facts, score all of these.

    Args:
        file: instructions in any form that `read_examples` takes; a small bundled set where absent.
    """

    file: str | None = None

    name: ClassVar[str] = "relearn-benign"
    summary: ClassVar[str] = "fine-tune on unrelated everyday instructions, score all forgotten facts"

    def material(
        self, encoder: Encoder, request: Request, before: Sequence[ItemScore], like: AttackResult | None
    ) -> Material:
        """The instructions, and all forget items."""
        if self.file is not None:
            return Material(read_examples(self.file, question=encoder.question), request.forget)
        return Material(instructions(encoder.question), request.forget, ("The bundled instruction set was used.",))
