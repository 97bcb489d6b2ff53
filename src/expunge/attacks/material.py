"""What an attack trains on and what it is scored on."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.example import Example
from expunge.errors import InputError


@dataclass(frozen=True)
class Material:
    """What an attack trains on, nothing for one that does not train, and what it is scored on, disjoint; and what a
    reader must know of the choice."""

    train: tuple[Example, ...]
    scored: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    def require_scorable(self, name: str) -> None:
        """InputError unless every scored item has options and none of them is trained on by the attack `name`."""
        trained = {(example.prompt, example.answer) for example in self.train}
        for example in self.scored:
            if not example.options:
                raise InputError(
                    "A scored item has no wrong options to be told from.",
                    f"{name}, {example.prompt[:60]!r}",
                    'Give each forget item "options".',
                )
            if (example.prompt, example.answer) in trained:
                raise InputError(
                    "The attack would train on an item that it is scored on.",
                    f"{name}, {example.prompt[:60]!r}",
                    "Remove it from the training material.",
                )
