"""What is minimised: `Objective`, and what goes in and comes out of one.

    loss = forget_weight * L_f + retain_weight * L_r

A step may be cut into micro-batches and spread over processes. Every loss is therefore divided by the counts of the
*whole* step (`Totals`), so that the parts add up to the loss of the undivided batch whatever the cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.errors import InputError, InternalError

if TYPE_CHECKING:
    from expunge.data.example import Example
    from expunge.models.answers import Answers


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over the whole step: all its micro-batches, on all processes.

    Tokens are those of answers, positions those of prompts too.
    """

    forget_tokens: int
    forget_items: int
    retain_tokens: int
    forget_positions: int = 0
    retain_positions: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """A micro-batch's share of the loss, with its graph, and of its two parts before they are weighted."""

    loss: Float[Tensor, ""]
    forget: Float[Tensor, ""]
    retain: Float[Tensor, ""]


@dataclass(frozen=True, slots=True)
class Share:
    """How much of each side of the loss is wanted, on top of the objective's weights; 0 leaves its rows out."""

    forget: float = 1.0
    retain: float = 1.0


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class Companions:
    """What the model says now to rows that belong to forget rows; `owner` is the forget row of each."""

    answers: Answers
    owner: Int[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class StartValues:
    """What goes with the rows of a micro-batch, as far as the objective asks for it: what the model said before
    training, and what it says to other answers.

    Args:
        forget: log P of each forget answer, or None.
        retain_logits: logits at the answer tokens of the retain rows, or None.
        logits: the way of the model in training from `Answers.hidden` to its logits.
        companions: what the model says now to the objective's companions, or None where there are none.
        companions_start: log P of the companions at the start, or None.
        forget_logits: logits at the answer tokens of the forget rows at the start, or None.
        retain_states: states of block `state_layer` at all tokens of the retain rows at the start, or None.
        goals: of each forget row, see `Objective.goals`, or None.
        held: which forget rows are facts of earlier requests; None where there are none.
    """

    forget: Float[Tensor, " items"] | None
    retain_logits: Float[Tensor, "tokens vocabulary"] | None
    logits: Callable[[Tensor], Tensor]
    companions: Companions | None = None
    companions_start: Float[Tensor, " rows"] | None = None
    forget_logits: Float[Tensor, "tokens vocabulary"] | None = None
    retain_states: Float[Tensor, "positions d"] | None = None
    goals: Float[Tensor, " items"] | None = None
    held: Bool[Tensor, " items"] | None = None


class Objective(ABC):
    """A loss on the answers of forget and retain rows.

    A subclass is a frozen dataclass of its settings. It must reach the forget rows through `forget.sequence` alone if
    the attribution penalty is to ride on its backward.
    """

    uses_retain: ClassVar[bool] = False
    """Whether retain rows are forwarded at all."""
    uses_forget_start: ClassVar[bool] = False
    """Whether `start.forget` is wanted."""
    uses_forget_start_logits: ClassVar[bool] = False
    """Whether `start.forget_logits` is wanted."""
    uses_retain_start: ClassVar[bool] = False
    """Whether `start.retain_logits` is wanted."""
    trains_companions: ClassVar[bool] = False
    """Whether the companions are part of the loss; they are looked at without a gradient otherwise."""
    uses_companion_start: ClassVar[bool] = False
    """Whether `start.companions_start` is wanted."""

    @property
    def weights(self) -> Share:
        """gamma and alpha."""
        return WHOLE

    @property
    def state_layer(self) -> int | None:
        """The block that is read instead of the head: rows then come as `BlockStates`. None for answers."""
        return None

    @property
    def twins(self) -> int:
        """How many made-up twins (`data.twins`) of each forget item the loss holds; none unless it says so.

        One of them comes with the item, in turn from epoch to epoch, and is part of the loss.
        """
        return 0

    @property
    def held_options(self) -> int:
        """How many wrong options of an item that has twins are held too, its twins' turns and theirs alternating."""
        return 0

    @property
    def holds_earlier(self) -> bool:
        """Whether facts of earlier requests are forget rows too: only a loss that stops at ignorance can bear them."""
        return False

    @property
    def comes_back(self) -> bool:
        """Whether the loss raises by itself an answer that fell too low, so that a run past its target need not go
        back; see `landing`."""
        return False

    def goals(self, twins: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """Where each forget item is to go, from the log-odds of its twins at the start."""
        return twins

    def companions(self, example: Example) -> tuple[str, ...]:
        """Other answers to the prompt of a forget example that the loss looks at; none unless it says so."""
        return ()

    @abstractmethod
    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """These rows' share of L_f."""

    def retain_loss(self, retain: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """These rows' share of L_r: CE(r) unless the objective has another."""
        return cross_entropy(retain.sequence, totals.retain_tokens)

    def anchor_loss(self, anchors: Answers, kept: Float[Tensor, " rows"], totals: Totals) -> Float[Tensor, ""]:
        """The share of L_f of the rows that an objective with `twins` holds (`unlearning.anchors`): of what the model
        says to them now, and of the log P that they are to keep."""
        raise InternalError(f"{type(self).__name__} asks for twins and has no loss for them")

    def __call__(
        self,
        forget: Answers | None,
        retain: Answers | None,
        totals: Totals,
        start: StartValues,
        share: Share = WHOLE,
    ) -> Terms:
        """The share of the loss of these rows; a side is None where it has no rows."""
        nothing = torch.zeros((), device=next(rows.sequence.device for rows in (forget, retain) if rows is not None))
        up = nothing if forget is None else self.forget_loss(forget, totals, start)
        held = nothing if retain is None else self.retain_loss(retain, totals, start)
        weights = self.weights
        loss = share.forget * weights.forget * up + share.retain * weights.retain * held
        return Terms(loss, up.detach(), held.detach())


@dataclass(frozen=True, slots=True)
class Balanced(Objective):
    """An objective with a retain side, and a weight for each side.

    Args:
        forget_weight: gamma.
        retain_weight: alpha.
    """

    uses_retain: ClassVar[bool] = True

    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(forget_weight=self.forget_weight, retain_weight=self.retain_weight)

    @property
    def weights(self) -> Share:
        """gamma and alpha."""
        return Share(self.forget_weight, self.retain_weight)


def cross_entropy(sequence: Float[Tensor, " items"], tokens: int) -> Float[Tensor, ""]:
    """Mean NLL per answer token, from log P of whole answers and the number of tokens to divide by."""
    return -sequence.sum() / max(tokens, 1)


def require_weights(**weights: float) -> None:
    """InputError for a weight that is not a finite number >= 0."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise InputError("A weight must be a finite number of at least 0.", f"{name}={value}")
