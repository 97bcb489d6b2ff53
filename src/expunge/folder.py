"""What a run leaves behind, and where: one folder, of which `record.json` is the truth and the rest can be checked."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from pydantic import JsonValue, TypeAdapter, ValidationError

from expunge.errors import InputError, unreadable
from expunge.models.storage import atomic_write_text, model_files
from expunge.recipe import Comparison, Plan, Recipe
from expunge.request import Request

_log = logging.getLogger(__name__)

WHENCE: Final[Mapping[str, Any]] = {"model": str | None, "hashes": dict[str, str], "control": str | None}
MADE: Final[Mapping[str, Any]] = {
    "arguments": dict[str, JsonValue],
    "hashes": dict[str, str],
    "history": list[dict[str, Any]],
    "peak_bytes": int,
    "stage_seconds": float,
    "steps": int,
    "stop_reason": str,
}
"""What source.json and training.json hold, whoever wrote them, and of which kind it is."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder.

    model/          the unlearned checkpoint, with its card
    request/        what had to go, what had to stay, and what is scored
    attacks/        one JSON per attack, and its finished cells
    removed.safetensors  what the next request must know, as what projections removed; absent with most parametrizations
    training.json   how the unlearning went; metrics.jsonl step by step
    record.json     everything that the report shows
    report.html     the page

    Where the model was made elsewhere there is no model/, and comparison.yaml instead of recipe.yaml.
    """

    path: Path

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.recipe.is_file() or self.comparison.is_file()

    @property
    def model(self) -> Path:
        """The unlearned checkpoint."""
        return self.path / "model"

    @property
    def request(self) -> Path:
        """The stored request."""
        return self.path / "request"

    @property
    def attacks(self) -> Path:
        """Results of attacks on the unlearned model."""
        return self.path / "attacks"

    @property
    def control_attacks(self) -> Path:
        """Results of the same attacks on the control."""
        return self.path / "control"

    @property
    def original_attacks(self) -> Path:
        """Results, on the model before unlearning, of those attacks that take knowledge from every model."""
        return self.path / "original"

    @property
    def removed(self) -> Path:
        """What the next request must know of this one."""
        return self.path / "removed.safetensors"

    @property
    def training(self) -> Path:
        """Result of the unlearning loop."""
        return self.path / "training.json"

    @property
    def recipe(self) -> Path:
        """The recipe that made the run."""
        return self.path / "recipe.yaml"

    @property
    def comparison(self) -> Path:
        """What is compared with what, where the model was made elsewhere."""
        return self.path / "comparison.yaml"

    @property
    def source(self) -> Path:
        """The starting checkpoint and the control: their places and hashes."""
        return self.path / "source.json"

    @property
    def record(self) -> Path:
        """The record."""
        return self.path / "record.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def create(self, recipe: Recipe) -> None:
        """Make the folder for `recipe`: another run's is refused, an unfinished one of the same recipe is taken up."""
        if self.occupied and (self.training.exists() or not self._of(recipe)):
            raise self.refusal("only an unfinished run of this recipe resumes")
        self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Nobody else on this machine works in the folder meanwhile; InputError where somebody does."""
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        try:
            with FileLock(Path(tempfile.gettempdir()) / f"expunge-{name}.lock", timeout=0):
                yield
        except Timeout as error:
            raise InputError(
                "Another expunge is at work in this folder.", str(self.path), "Wait for it, or name another folder."
            ) from error

    def require_same(self, recipe: Recipe, parts: Mapping[str, str]) -> None:
        """InputError unless the finished run is of `recipe`, and its method was made of the same `parts` then."""
        made = read_json(self.training).get("parts", parts)
        if made != parts or not self._of(recipe):
            raise self.refusal("only the same recipe, of a method that has not changed since, goes on")

    def require_same_data(self, request: Request, fix: str = "") -> None:
        """InputError, which says what to do (`fix`), unless the run is of `request`."""
        stored, asked = self.load_request().hashes(), request.hashes()
        if changed := sorted(part for part in stored | asked if stored.get(part) != asked.get(part)):
            raise InputError(
                f"The run in this folder was made with other data: {', '.join(changed)} changed since.",
                str(self.path),
                fix or "Restore the data, or name another folder with --output.",
            )

    def _of(self, recipe: Recipe) -> bool:
        """Whether the run is that of `recipe`."""
        return self.recipe.is_file() and self.load_recipe() == recipe

    @property
    def occupied(self) -> bool:
        """Whether there is anything in the folder; InputError where it is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(
                "The output is a file, not a folder.", str(self.path), "Name another folder with --output."
            )
        return self.path.is_dir() and any(self.path.iterdir())

    def refusal(self, unless: str) -> InputError:
        """That the folder is taken."""
        return InputError(
            "The output folder already exists and holds something else.",
            str(self.path),
            f"Name another folder with --output, or remove this one; {unless}.",
        )

    def attacked(self, *, controlled: bool) -> list[Path]:
        """The results of the attacks, without those that were cut before the control, if there is one, was attacked."""
        files = sorted(self.attacks.glob("*.json"))
        cut = [file for file in files if controlled and not (self.control_attacks / file.name).is_file()]
        for file in cut:
            _log.warning("%s is left out, as it was not made on the control: run that attack again.", file.stem)
        return [file for file in files if file not in cut]

    def load_recipe(self) -> Recipe:
        """The recipe that made the run."""
        return Recipe.load(self.recipe)

    def load_request(self) -> Request:
        """The request that the run honoured."""
        return Request.load(self.request)

    def load_source(self) -> dict[str, Any]:
        """The starting checkpoint and the control: their places and hashes."""
        return _read_parts(self.source, WHENCE)

    def load_subject(self) -> Subject:
        """What the stages after unlearning work on; InputError unless there is a finished model."""
        if not self.training.is_file():
            raise InputError(
                "This is not a finished run.", str(self.path), "Make one with `expunge unlearn ... --output RUN`."
            )
        source, training, request = self.load_source(), _read_parts(self.training, MADE), self.load_request()
        there = Path(str(source.get("begun_in", "")))
        original, control = (_from(there, source[name]) for name in ("model", "control"))
        whence = original, source["hashes"], control, training
        if self.comparison.is_file():
            comparison = Comparison.load(self.comparison)
            return Subject(comparison, request, _from(there, comparison.model) or "", *whence)
        return Subject(self.load_recipe(), request, str(self.model), *whence)


def _from(there: Path, place: str | None) -> str | None:
    """A model's folder or Hub id; a folder that is not found from here as it was from `there`, where the run began."""
    at_hand = place is None or Path(place).expanduser().exists() or not (there / place).is_dir()
    return place if at_hand else str(there / str(place))


@dataclass(frozen=True)
class Subject:
    """A model that is to be measured and attacked, and what it is measured against.

    Args:
        plan: the recipe that made it, or the comparison that it is part of.
        request: what had to go and to stay.
        model: its folder or Hub id.
        original: that of the model before unlearning; None where it is not at hand.
        hashes: of the original's files.
        control: that of a model that never knew; None where there is none.
        training: how the unlearning went, and the hashes of the model's files.
    """

    plan: Plan
    request: Request
    model: str
    original: str | None
    hashes: dict[str, str]
    control: str | None
    training: dict[str, Any]


def require_unchanged(place: str, found: Mapping[str, str], known: Mapping[str, str]) -> None:
    """InputError where a file that the model at `place` is read from has another sha256 than is `known` from when the
    run was made."""
    require_files(place, found, model_files(known))


def require_files(place: str, found: Mapping[str, str], known: Mapping[str, str]) -> None:
    """As `require_unchanged`, of every file that is `known`."""
    changed = sorted(name for name, digest in known.items() if found.get(name) != digest)
    if changed:
        raise InputError(
            f"The model is not the one of this run: {changed[0]} has changed since.",
            place,
            "Restore it, or make the run again in another folder.",
        )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write what `read_json` gives back, with sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InputError where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, unreadable(error)) from error
    except ValueError as error:
        raise _unusable(path, "it is damaged") from error
    if not isinstance(value, dict):
        raise _unusable(path, "it is damaged")
    return value


def _read_parts(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in `path`; InputError also where it lacks one of `kinds`, or has something of another kind."""
    value = read_json(path)
    if missing := sorted(kinds.keys() - value.keys()):
        raise _unusable(path, f"it lacks {', '.join(missing)}")
    for name, kind in kinds.items():
        try:
            TypeAdapter(kind).validate_python(value[name], strict=True)
        except ValidationError as error:
            raise _unusable(path, f"it is damaged at {name}") from error
    return value


def _unusable(path: Path, why: str) -> InputError:
    return InputError(f"A file of the run cannot be used: {why}.", str(path), "Run the step that writes it again.")
