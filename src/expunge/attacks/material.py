"""What an attack trains on and what it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.example import Example
from expunge.data.order import permutation
from expunge.errors import InputError
from expunge.request import Request


@dataclass(frozen=True)
class Material:
    """What an attack trains on, nothing for one that does not train, and what it is scored on, disjoint; and what a
    reader must know of the choice."""

    train: tuple[Example, ...]
    scored: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    def require_scorable(self, name: str) -> None:
        """InputError unless every scored item has options and none of them is trained on by the attack `name`."""
        trained = {example.fact for example in self.train}
        for example in self.scored:
            if not example.options:
                raise InputError(
                    "A scored item has no wrong options to be told from.",
                    f"{name}, {example.prompt[:60]!r}",
                    'Give each forget item "options".',
                )
            if example.fact in trained:
                raise InputError(
                    "The attack would train on an item that it is scored on.",
                    f"{name}, {example.prompt[:60]!r}",
                    "Remove it from the training material.",
                )


def split(facts: Sequence[Example], fraction: float, key: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A part of `facts` drawn by `key`, at least one, and the rest, at least one if there are two.

    All that says the same of the same subject is drawn together, so that no fact is trained on in one wording and
    scored in another; then the part is a little larger where wordings do not divide evenly, and one fact at least
    stays. Only if all are wordings of one fact are these drawn one by one.
    """
    part = min(max(1, round(fraction * len(facts))), max(1, len(facts) - 1))
    wordings: dict[tuple[str, str], list[int]] = {}
    for i in permutation(len(facts), key):
        wordings.setdefault(_said(facts[i]), []).append(i)
    groups = list(wordings.values())
    if len(groups) == 1:
        groups = [[i] for i in groups[0]]
    train: list[int] = []
    for group in groups[: max(1, len(groups) - 1)]:
        train += group if len(train) < part else []
    return tuple(facts[i] for i in train), tuple(facts[i] for i in sorted(set(range(len(facts))) - set(train)))


def _said(example: Example) -> tuple[str, str]:
    """What the record says, whatever its wording; where it does not name its subject, its prompt has to tell."""
    return (example.subject.casefold(), example.fact[1]) if example.subject else example.fact


def same_split(request: Request, trained_ids: Sequence[str], held_out_ids: Sequence[str]) -> Material:
    """The forget items that another attack trained on and held out; InputError where one is not in the request."""
    by_id = {example.id: example for example in request.forget}
    missing = [i for i in (*trained_ids, *held_out_ids) if i not in by_id]
    if missing:
        raise InputError("The other result is about another request.", missing[0], "Attack both with one request.")
    train, scored = (tuple(by_id[i] for i in ids) for ids in (trained_ids, held_out_ids))
    return Material(train, scored, ("The split is that of the attack on the unlearned model.",))
