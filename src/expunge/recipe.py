"""One YAML file -> one frozen, validated recipe: everything that a run depends on.

model: smollm2
method: ssiuu
data: {benchmark: world_facts}
attacks: [relearn-harmful, relearn-related]
output: runs/ssiuu
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expunge.catalogue import DEFAULT_ATTACKS, DEFAULT_METHOD
from expunge.errors import SETTINGS_PAGE, InputError, nearest
from expunge.settings import assign, read_yaml

SMOLLM2 = "smollm2"
TRAINED = "trained"

TOP_LEVEL = ("dtype", "matmul_precision", "device", "revision")
"""Keys of a plan that a bare `--set` of the command line means."""


def _default_attacks() -> dict[str, dict[str, Any]]:
    return {name: {} for name in DEFAULT_ATTACKS}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(_Strict):
    """Where the request comes from: a benchmark by name, or files.

    Args:
        benchmark: a name of `expunge list benchmarks`; excludes the files.
        folder: where the files of a benchmark lie that is not in the package.
        forget, retain, attack: files or `datasets` ids read by `read_examples`.
        hold: likewise, of what earlier requests made go, to be held there.
        test: name -> file of further questions to score.
        text: a file of plain text for perplexity and KL; the bundled passages where absent.
        seed: of the split into forget, retain, test and attack.
        settings: further arguments of the benchmark's builder, such as n_forget.
    """

    benchmark: str | None = None
    folder: str | None = None
    forget: str | None = None
    retain: str | None = None
    attack: str | None = None
    hold: str | None = None
    text: str | None = None
    test: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    settings: dict[str, int | float] = Field(default_factory=dict)

    @property
    def at_hand(self) -> bool:
        """Whether all that is named are files that are here."""
        named = (self.forget, self.retain, self.attack, self.hold, self.text, *self.test.values())
        return all(Path(name).is_file() for name in named if name)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.benchmark and (self.forget or self.retain or self.attack or self.hold or self.test):
            raise ValueError("name a benchmark or files, not both")
        if not self.benchmark and not self.forget:
            raise ValueError("name a benchmark, or both `forget` and `retain` files")
        return self


class Plan(_Strict):
    """What measuring and attacking depend on, however the model came about.

    Args:
        control: a folder with a model that never knew the facts; `trained` models bring their own.
        revision: of the Hub id of the model before unlearning.
        dtype: of all models.
        matmul_precision: of products of float32 matrices, in torch's words: `highest`, or `high` and `medium`, which
            round off more and are faster on GPUs and on CPUs with bfloat16 units.
        template: `plain` prompts or the tokenizer's `chat` template.
        device: of all models.
        attacks: names, each with its settings or none; a label after @ lets one attack stand there several times.
        output: the folder of the run.
    """

    data: Data
    control: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    template: Literal["plain", "chat"] = "plain"
    device: str = "cpu"
    attacks: dict[str, dict[str, Any]] = Field(default_factory=_default_attacks)
    output: str = "runs/run"

    @model_validator(mode="before")
    @classmethod
    def _attacks_by_name(cls, value: Any) -> Any:
        """A plain list of attacks means each with its defaults; a name without settings likewise."""
        attacks = value.get("attacks") if isinstance(value, dict) else None
        if isinstance(attacks, list):
            return {**value, "attacks": {str(name): {} for name in attacks}}
        if isinstance(attacks, dict):
            return {**value, "attacks": {name: settings or {} for name, settings in attacks.items()}}
        return value

    @property
    def numbers(self) -> str:
        """What the models compute with, in words."""
        exact = self.matmul_precision == "highest"
        return self.dtype if exact else f"{self.dtype}, matrix products at {self.matmul_precision} precision"

    def to_yaml(self) -> str:
        """The plan as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def of(cls, tree: dict[str, Any], where: str) -> Self:
        """A plan out of plain values; InputError names each key at fault and the nearest valid one."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise InputError(_explain(error, cls), where, f"See {SETTINGS_PAGE}.") from None

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any] | None = None) -> Self:
        """The plan in `path` with `settings` (dotted keys) laid over it."""
        return cls.of(assign(read_yaml(path), settings or {}), str(path))


class Recipe(Plan):
    """All choices of one run.

    Args:
        model: a folder, a Hub id, `smollm2` (the demo's model), or `trained` (the benchmark trains a small one itself).
        method: a name of `expunge list methods`.
        transform: a gradient transform put in the place of the method's own; `none` leaves that out, and
            `sam+relearning` takes two, the outermost first, whose settings are `transform1. ...` and `transform2. ...`.
        settings: parts of the method, dotted: `transform.strength: 1.0`, `parametrization.rank: 8`.
        unlearn: arguments of the loop (`UnlearnArguments`).
        seed: of the loop; the data have their own.
    """

    model: str
    method: str = DEFAULT_METHOD
    transform: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    unlearn: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0

    @model_validator(mode="after")
    def _something_stays(self) -> Self:
        if not self.data.benchmark and not self.data.retain:
            raise ValueError("name a benchmark, or both `forget` and `retain` files")
        _require_other(self.control, self.model)
        return self


class Comparison(Plan):
    """An audit of a model that was made elsewhere, by any tool.

    Args:
        model: the folder or Hub id that is audited.
        base: the model before unlearning; absent where it is not at hand.
    """

    model: str
    base: str | None = None

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        if self.revision and not self.base:
            raise ValueError("`revision` is that of the base, and there is none")
        _require_other(self.control, self.model)
        _require_other(self.control, self.base)
        return self


def called(model: str) -> str:
    """A model's name for people, without this machine's paths: of its folder, or the Hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _require_other(control: str | None, model: str | None) -> None:
    """ValueError where the control, which never knew, is a model that knew."""
    if control is not None and model is not None and Path(control).resolve() == Path(model).resolve():
        raise ValueError(f"the control is {model} itself: it must be a model that never knew the facts")


_MAPPING = "a mapping of names to values"
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
}
"""In our words, by the kind of fault in pydantic's."""


def _explain(error: ValidationError, plan: type[Plan]) -> str:
    """One sentence per fault: key, what is wrong, and the nearest valid key for a misspelt one."""
    sentences = []
    for fault in error.errors():
        keys, kind = [str(step) for step in fault["loc"]] or [""], fault["type"]
        either = keys[-1] in ("int", "float")  # pydantic tells a number as two faults, one of each kind
        key = ".".join(keys[:-1] if either else keys)
        if kind == "extra_forbidden":
            owner: type[BaseModel] = Data if keys[0] == "data" else plan
            told = f"Unknown key {key!r}. {nearest(keys[-1], owner.model_fields)}"
        elif kind == "missing":
            told = f"{key} is missing."
        elif kind == "value_error":
            why = str(fault["ctx"]["error"])
            told = f"{key}: {why}." if key else f"{why[:1].upper()}{why[1:]}."
        else:
            wanted = fault["ctx"]["expected"] if kind == "literal_error" else _WANTED.get(kind, "of another kind")
            told = f"{key} must be {'a number' if either else wanted}, not {fault['input']!r}."
        sentences.append(told)
    return " ".join(dict.fromkeys(sentences))
