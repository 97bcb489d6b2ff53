"""One JSON record of a run: everything that the report shows, and nothing that it has to compute again.

Version 1. Floats keep six significant digits, keys are sorted, the text is ASCII and ends with one line feed, so that
equal records are equal bytes. A measure that was not taken, or was not finite, is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from expunge.errors import InputError, unreadable
from expunge.report.parts import (
    GOLD_MODEL,
    NO_CONTROL,
    SHOULD_GO,
    SHOULD_STAY,
    Attack,
    AttackControl,
    Change,
    Control,
    Cost,
    CurvePoint,
    Hashes,
    Influence,
    Item,
    ItemState,
    LmEval,
    LogitLens,
    Metrics,
    ModelPart,
    Part,
    Probe,
    RecipePart,
    Score,
    Scores,
    Text,
    Training,
    TrainingPoint,
    Verdict,
    VerdictDetails,
    Versions,
)

SCHEMA_VERSION = 1
DIGITS = 6


class Record(Part):
    """The whole run. Read with `Record.load`, write `dumps()`."""

    schema_version: Literal[1] = 1
    name: str = ""
    created: str
    verdict: Verdict
    verdict_details: VerdictDetails
    scores: Scores
    attacks: tuple[Attack, ...]
    control: Control
    influence: Influence | None = None
    influence_log_odds: Influence | None = None
    logit_lens: LogitLens | None = None
    probe: Probe | None = None
    text: Text = Text()
    metrics: Metrics | None = None
    items: tuple[Item, ...] = ()
    cost: Cost
    training: Training = Training()
    recipe: RecipePart
    seeds: dict[str, JsonValue] = Field(default_factory=dict)
    versions: Versions
    hashes: Hashes
    model: ModelPart

    @model_validator(mode="after")
    def _created_is_a_time(self) -> Self:
        datetime.fromisoformat(self.created)
        return self

    @property
    def strongest(self) -> Attack | None:
        """The attack that the verdict names, else the one that brought back most of those that count, else None."""
        named = [a for a in self.attacks if a.name == self.verdict_details.strongest_attack]
        return next(iter(named), max((a for a in self.attacks if a.counts), key=lambda a: a.recovery, default=None))

    @property
    def ranked(self) -> tuple[Attack, ...]:
        """The attacks, the one that brought back most first."""
        return tuple(sorted(self.attacks, key=lambda a: (-a.recovery, a.name)))

    @property
    def influences(self) -> tuple[Influence | None, Influence | None]:
        """That on the probability, and that on the log-odds."""
        return self.influence, self.influence_log_odds

    @property
    def telling_influence(self) -> Influence | None:
        """The influence that can be read: of the log-odds where most answers are too certain for that of P."""
        blind = self.influence is not None and self.influence.saturated_share > 0.5
        return self.influence_log_odds if blind and self.influence_log_odds else self.influence

    def dumps(self) -> str:
        """Canonical JSON: the same text for the same record, ending with a line feed."""
        tree = rounded(self.model_dump(mode="python"))
        return json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"

    def canonical(self) -> Self:
        """The record as it reads back from its file: rounded, keys sorted; so pages of both are the same bytes."""
        return self.loads(self.dumps())

    @classmethod
    def loads(cls, text: str, where: str = "record") -> Self:
        """The record in `text`; InputError names the field at fault or the version that this package cannot read."""
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("The record is not JSON.", f"{where}: {error}", "Run `expunge audit` again.") from error
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != SCHEMA_VERSION:
            what = f"The record has schema version {version!r}; this expunge reads version {SCHEMA_VERSION}."
            raise InputError(what, where, "Run `expunge audit` again, or use the expunge that wrote it.")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = next(_faults(error))
            raise InputError(
                "The record does not have the right shape.", f"{where}: {fault}", "Run `expunge audit` again."
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The record in the file `path`, or in `record.json` of the folder `path`; InputError as `loads`."""
        file = Path(path)
        file = file / "record.json" if file.is_dir() else file
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"The record cannot be read: {unreadable(error)}."
            raise InputError(what, str(file), "Run `expunge audit RUN` first.") from error
        return cls.loads(text, str(file))


def rounded(value: Any) -> Any:
    """`value` with every float at six significant digits, and -0 as 0."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") + 0.0
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def _faults(error: ValidationError) -> Iterator[str]:
    """Each fault as `field.path: what`, without the input, which may be long or untrusted."""
    for fault in error.errors(include_url=False, include_input=False):
        yield f"{'.'.join(str(step) for step in fault['loc']) or 'record'}: {fault['msg']}"


__all__ = [
    "GOLD_MODEL",
    "NO_CONTROL",
    "SCHEMA_VERSION",
    "SHOULD_GO",
    "SHOULD_STAY",
    "Attack",
    "AttackControl",
    "Change",
    "Control",
    "Cost",
    "CurvePoint",
    "Hashes",
    "Influence",
    "Item",
    "ItemState",
    "LmEval",
    "LogitLens",
    "Metrics",
    "ModelPart",
    "Part",
    "Probe",
    "RecipePart",
    "Record",
    "Score",
    "Scores",
    "Text",
    "Training",
    "TrainingPoint",
    "Verdict",
    "VerdictDetails",
    "Versions",
]
