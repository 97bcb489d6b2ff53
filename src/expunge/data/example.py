"""The one record type: a question, its answer, and what goes with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One thing a model may know.

    Args:
        prompt: text before the answer, as the model sees it (a user turn under a chat template).
        answer: text whose log-probability is trained or scored.
        options: wrong answers of the same kind; empty where none are given.
        paraphrases: other prompts that ask for the same answer.
        subject: whom or what the fact is about.
        group: a label such as "multi_hop"; carries no meaning for training.
        id: sha256 prefix of (prompt, answer) unless given.
        answer_paraphrases: the same answer in other words, which the truth ratio asks for.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    subject: str = ""
    group: str = ""
    id: str = field(default="")
    answer_paraphrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            digest = hashlib.sha256(json.dumps([self.prompt, self.answer]).encode()).hexdigest()
            object.__setattr__(self, "id", digest[:16])

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the answer and its options."""
        return 1 / (1 + len(self.options))

    @property
    def fact(self) -> tuple[str, str]:
        """Prompt and answer, whatever their case and white space: two examples with the same ask for the same."""
        return _plain(self.prompt), _plain(self.answer)

    @property
    def quoted(self) -> str:
        """Prompt and answer in an error, cut short."""
        return f"{self.prompt[:80]!r} -> {self.answer[:40]!r}"

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types, empty fields left out."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v}

    def to_row(self) -> dict[str, Any]:
        """The record as a row of a data file: as `to_json`, but an answer without a prompt is a text."""
        row = self.to_json()
        if not self.prompt:
            row["text"] = row.pop("answer")
        return row


def shared(some: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    """Those of `some` whose fact one of `others` holds."""
    known = {example.fact for example in others}
    return [example for example in some if example.fact in known]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
