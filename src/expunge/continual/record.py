"""The record of a course: a stream of requests carried out on one model, everything scored after each of them.

Version 1. As `Record`: floats keep six significant digits, keys are sorted, equal records are equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.errors import InputError
from expunge.models.scores import ItemScore, summarise
from expunge.report.record import rounded

VERSION = 1

RETAIN, HELD_OUT = "retain", "held_out"
"""The sets of a stream that stay; all other names are those of requests."""


Setting = Literal["merged", "frozen", "reapplied", "deleted"]
"""How projections hold under attack; see `continual.relearning`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SetScore(_Part):
    """Means over one set of questions; see `models.scores.Scores`."""

    accuracy: float
    log_odds: float
    chance: float
    n: int

    @classmethod
    def of(cls, items: Sequence[ItemScore]) -> Self:
        """The means over `items`, to six digits."""
        scores = summarise(items)
        means = {"accuracy": scores.accuracy, "log_odds": scores.log_odds, "chance": scores.chance}
        return cls(**rounded(means), n=scores.n)


class Twinned(_Part):
    """Questions of a request that have a made-up twin (`data.twins`).

    Args:
        log_odds: mean over these questions.
        made_up: mean over their twins.
        n: how many.
    """

    log_odds: float
    made_up: float
    n: int

    @property
    def lead(self) -> float:
        """What is said of the subjects and not of made-up ones, nats."""
        return self.log_odds - self.made_up


def twinned(odds: Mapping[str, Mapping[str, float]], guesses: Mapping[str, float]) -> dict[str, Twinned]:
    """Each set that has twins beside these, to six digits.

    Args:
        odds: log-odds by set and by the id of the item.
        guesses: log-odds of the twins that there are, by the id of their item.
    """
    found = {}
    for name, own in odds.items():
        if have := [item for item in own if item in guesses]:
            means = {"log_odds": fmean(map(own.__getitem__, have)), "made_up": fmean(map(guesses.__getitem__, have))}
            found[name] = Twinned(**rounded(means), n=len(have))
    return found


class Moment(_Part):
    """How everything stands at one moment.

    Args:
        request: the one just carried out; empty for the model of the start.
        sets: by the id of each request of the stream, and `RETAIN`, `HELD_OUT`.
        perplexity: on plain text; the largest number there is where it is none.
        steps, seconds, peak_bytes, trained: what this request cost: optimizer steps, wall time of the loop, the most
            memory the process held so far, numbers that were trained.
        twins: by the id of each request that has made-up twins; empty where a gold control makes them needless.
    """

    request: str
    sets: Mapping[str, SetScore]
    perplexity: float
    steps: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    trained: int = 0
    twins: Mapping[str, Twinned] = Field(default_factory=dict)


class Rest(_Part):
    """Those questions of a request that an attacker does not tune on, in models that nobody attacked.

    Args:
        start: in the model of the start.
        twins: there, beside their made-up twins; None where there are none.
        gold: in the gold model of the whole stream; None where there is none.
    """

    start: SetScore
    twins: Twinned | None = None
    gold: SetScore | None = None


class Relearnt(_Part):
    """The last model fine-tuned on a part of one request; the best point of the grid, by log-odds of what is scored.

    Args:
        setting: "merged": all ordinary weights; "frozen": the projections stay as hooks that no one removes;
            "reapplied": they are folded in again after every step of the attacker; "deleted": the attacker takes the
            hooks away and tunes nothing, which leaves the model of the start where rows alone were trained.
        request: whose facts it was tuned on.
        learning_rate, step: of the best point.
        curve: log-odds of everything scored, by learning rate and step.
        sets: as in `Moment`, without what was tuned on.
        seconds: wall time.
        twins: as in `Moment`, of the questions in `sets`; at the point of the grid where they lead their twins most.
        control: log-odds of the sets in the gold model of the whole stream, attacked alike, at the same point of the
            grid; empty where there is none.
        rest: what the questions of `request` are measured from; None in records from before it was kept.
    """

    setting: Setting
    request: str
    learning_rate: float
    step: int
    curve: tuple[tuple[float, int, float], ...]
    sets: Mapping[str, SetScore]
    seconds: float
    twins: Mapping[str, Twinned] = Field(default_factory=dict)
    control: Mapping[str, float] = Field(default_factory=dict)
    rest: Rest | None = None


class Course(_Part):
    """One method on one stream.

    Args:
        stream: name of the benchmark.
        method: name in the catalogue.
        recipe: all that was asked for, without this machine's paths.
        parts, arguments: what that made of the method and of the loop; empty in records from before they were told.
        model: what the stream began with.
        gold: for every prefix of the stream, a model that never knew what it forgets; empty where there is none.
        start, after: before the first request, and after each.
        relearnt: attacks on the last model.
        hashes: of the data, and of the first and the last weights.
        versions: of Python, torch, transformers and expunge.
    """

    version: Literal[1] = 1
    stream: str
    method: str
    recipe: dict[str, Any]
    parts: dict[str, str] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int
    model: str
    gold: tuple[Moment, ...] = ()
    start: Moment
    after: tuple[Moment, ...]
    relearnt: tuple[Relearnt, ...] = ()
    hashes: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def dumps(self) -> str:
        """The bytes of the record, as text."""
        return json.dumps(rounded(self.model_dump(mode="json")), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Course:
        """The record in a file; InputError where it is none."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputError("This is not the record of a course.", str(path), str(error)) from error
