"""Attacks that search: they climb the log-odds of one half of the forgotten facts and are scored on the other.

    maximise  L = mean over the facts searched on of  answer_mean - log mean exp(option_log_probs)

A strong enough search makes a model say anything (arXiv:2502.15836). So what is found is one and the same for all
facts, and what counts is what it does for facts that the search never saw; even so it says something only beside a
control.
"""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from expunge.attacks.base import T, Target
from expunge.attacks.cells import Cells, fingerprint
from expunge.attacks.material import Material, same_split, split
from expunge.attacks.trials import Questions, Trials
from expunge.attacks.weights import Weights
from expunge.data.collate import Encoded, Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.architecture import readout
from expunge.models.scores import choices, log_odds_of

logger = logging.getLogger(__name__)

Groups = Sequence[Sequence[Encoded]]
"""The answer and the options of each question."""

READ, CLIMBED = 64, 16
"""Questions that are read at once, without and with a graph."""


@dataclass(frozen=True)
class Search(Trials, ABC):
    """Half of the forget items to search on, the other half to be scored on.

    Args:
        split_seed: of the choice of the halves.
    """

    split_seed: int = 0

    control_only: ClassVar[bool] = True

    def material(self, target: Target[T]) -> Material:
        """A seeded half of the forget items and the rest of them; the split of `like` where given."""
        facts = target.request.forget
        Material((), facts).require_scorable(self.name)
        if target.like is not None:
            return same_split(target.request, target.like.trained_ids, target.like.held_out_ids)
        if len(facts) < 2:
            raise InputError(
                "One forget item cannot be split.", self.name, "Give at least two, or leave this attack out."
            )
        return Material(*split(facts, 0.5, f"{self.split_seed}/search"))

    def kept(self, target: Target[T], weights: Weights, **settings: float) -> Kept:
        """Where the moments of a search are kept, which depends on these settings."""
        parts = [
            weights.digest(),
            target.encoder.describe(),
            settings,
            [fact.to_json() for fact in self.material(target).train],
        ]
        return Kept(target.cells, self.name, fingerprint(parts))


@dataclass(frozen=True)
class Moment:
    """What a search has found by then: a push or a suffix's tokens; L where it is known; queries since the last one."""

    found: tuple[float, ...]
    value: float
    queries: int


_MOMENT: TypeAdapter[Moment] = TypeAdapter(Moment)


@dataclass(frozen=True)
class Kept:
    """The moments of a search, so that an interrupted one goes on from the last.

    Args:
        cells: the store.
        name: of the attack.
        fingerprint: of all that the search depends on.
    """

    cells: Cells
    name: str
    fingerprint: str

    def read(self, moment: str) -> Moment | None:
        """What was found then; None where nothing was kept, or it is damaged."""
        if (value := self.cells.get(self._key(moment))) is None:
            return None
        try:
            return _MOMENT.validate_python(value)
        except ValidationError as error:
            logger.warning("A stored moment of %s is damaged and will be searched again: %s", self.name, error)
            return None

    def write(self, moment: str, found: Moment) -> None:
        """Keep it."""
        self.cells[self._key(moment)] = _MOMENT.dump_python(found, mode="json")

    def _key(self, moment: str) -> str:
        return f"{self.name}-{moment}-{self.fingerprint}"


@dataclass(frozen=True)
class Goal:
    """L of the module's formula, of whatever the model and the questions are at the moment.

    Args:
        facts: that are searched on, each with options.
    """

    model: PreTrainedModel
    encoder: Encoder
    facts: tuple[Example, ...]

    def groups(self, facts: Questions) -> Groups:
        """What is read of each."""
        return [choices(self.encoder, fact) for fact in facts]

    @torch.no_grad()
    def values(self, many: Sequence[Groups]) -> list[float]:
        """L of each."""
        if not many:
            return []
        flat = [group for groups in many for group in groups]
        odds = [self._odds(flat[start : start + READ]) for start in range(0, len(flat), READ)]
        means: list[float] = torch.cat(odds).view(len(many), -1).double().mean(1).tolist()
        return means

    @torch.enable_grad()
    def slope(self, groups: Groups, free: Tensor) -> Tensor:
        """dL / dfree, for what `free` does to the model at the moment."""
        total = torch.zeros_like(free)
        for start in range(0, len(groups), CLIMBED):
            value = self._odds(groups[start : start + CLIMBED]).sum() / len(groups)
            total += torch.autograd.grad(value, free)[0]
        return total

    def _odds(self, groups: Groups) -> Tensor:
        return log_odds_of(self.model, readout(self.model), groups, self.encoder.pad_id)
