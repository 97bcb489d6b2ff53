"""What must go, what must stay, and who asked: the input of everything else."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.data.example import Example
from expunge.errors import InputError

FORGET_GROUPS: tuple[str, ...] = ("paraphrase", "multi_hop")
"""Groups of `Request.test` that ask for the forgotten facts in other words: they must go too."""

RETAIN_GROUPS: tuple[str, ...] = ("same_answer", "same_subject", "held_out")
"""Groups of `Request.test` that only look like the forgotten facts: they must stay."""

NAME = re.compile(r"\w[\w.-]*")
"""What can be the name of a file or of a folder."""

EARLIER = "request_"
"""What the names of groups begin with that ask for what earlier requests made go."""

_FIELDS = {
    "prompt": str,
    "answer": str,
    "subject": str,
    "group": str,
    "id": str,
    "options": tuple,
    "paraphrases": tuple,
    "answer_paraphrases": tuple,
}


def had_to_go(group: str) -> bool:
    """Whether a group of `Request.test` asks for what this request or an earlier one wants forgotten."""
    return group in FORGET_GROUPS or group.startswith(EARLIER)


@dataclass(frozen=True)
class Request:
    """One demand to forget, with everything needed to carry it out and to check it.

    Args:
        forget: what must go; at least one example.
        retain: what must stay and may be trained on.
        test: named groups that are only scored, see `FORGET_GROUPS` and `RETAIN_GROUPS`; other names are allowed.
        attack: facts of the same kind about other subjects, disjoint from all others (relearn-related trains on them).
        text: plain passages for perplexity and KL.
        name: short label of the request.
        reason: why, or by whom, it was asked.
        hold: what earlier requests made go; an objective that stops at ignorance keeps it there (`Bounded`).

    Raises:
        InputError: `forget` is empty or repeats itself, two sets that must be disjoint share a (prompt, answer),
            or a group's name cannot be a file name.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    test: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    attack: tuple[Example, ...] = ()
    text: tuple[str, ...] = ()
    name: str = ""
    reason: str = ""
    hold: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        _freeze(self)
        if not self.forget:
            raise InputError("There is nothing to forget.", "forget", "Give at least one example.")
        for group in self.test:
            if not NAME.fullmatch(group):
                raise InputError("A test group's name must be usable as a file name.", repr(group), "Rename it.")
        _require_unique_ids("forget", self.forget)
        _require_unique_ids("attack", self.attack)
        _require_disjoint("forget", self.forget, "retain", self.retain)
        for other, examples in (("forget", self.forget), ("retain", self.retain)):
            _require_disjoint("hold", self.hold, other, examples)
        for other, examples in self._sets().items():
            if other != "attack":
                _require_disjoint("attack", self.attack, other, examples)

    def examples(self) -> tuple[Example, ...]:
        """The records of all sets."""
        tests = (example for group in self.test.values() for example in group)
        return (*self.forget, *self.retain, *self.attack, *self.hold, *tests)

    def hashes(self) -> dict[str, str]:
        """sha256 of the canonical JSON of each part, by "forget", "retain", "test/NAME", "attack", "hold", "text"."""
        parts: dict[str, list[Any]] = {k: [e.to_json() for e in v] for k, v in self._sets().items()}
        parts["text"] = list(self.text)
        return {k: hashlib.sha256(_canonical(v).encode()).hexdigest() for k, v in parts.items()}

    def save(self, folder: Path | str) -> Path:
        """Write the request as JSON lines under `folder` and return it; `Request.load` gives an equal one."""
        folder = Path(folder)
        for part, examples in self._sets().items():
            _write_lines(folder / f"{part}.jsonl", [e.to_row() for e in examples])
        _write_lines(folder / "text.jsonl", [{"text": t} for t in self.text])
        _write_lines(folder / "request.json", [{"name": self.name, "reason": self.reason}])
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Request:
        """The request that `save` wrote to `folder`.

        Raises:
            InputError: the folder or its forget.jsonl is missing, or a line is not what `save` writes.
        """
        folder = Path(folder)
        if not (folder / "forget.jsonl").is_file():
            raise InputError("This folder holds no saved request.", str(folder), "It must contain forget.jsonl.")
        about = next(iter(_read_lines(folder / "request.json")), {})
        return cls(
            forget=_read_examples(folder / "forget.jsonl"),
            retain=_read_examples(folder / "retain.jsonl"),
            test={p.stem: _read_examples(p) for p in sorted((folder / "test").glob("*.jsonl"))},
            attack=_read_examples(folder / "attack.jsonl"),
            hold=_read_examples(folder / "hold.jsonl"),
            text=tuple(str(row.get("text", "")) for row in _read_lines(folder / "text.jsonl")),
            name=str(about.get("name", "")),
            reason=str(about.get("reason", "")),
        )

    def with_text(self, text: Iterable[str]) -> Request:
        """The same request with other plain passages."""
        return replace(self, text=tuple(text))

    def _sets(self) -> dict[str, tuple[Example, ...]]:
        groups = {f"test/{name}": examples for name, examples in sorted(self.test.items())}
        hold = {"hold": self.hold} if self.hold else {}
        return {"forget": self.forget, "retain": self.retain, **groups, "attack": self.attack, **hold}


def _freeze(request: Request) -> None:
    """Accept lists where tuples are meant, so that a request is immutable whoever builds it."""
    for name in ("forget", "retain", "attack", "hold", "text"):
        object.__setattr__(request, name, tuple(vars(request)[name]))
    object.__setattr__(request, "test", {k: tuple(v) for k, v in request.test.items()})


def _require_unique_ids(name: str, examples: Sequence[Example]) -> None:
    """Scores are kept by id, and a repeat could be trained on and held out at once."""
    repeated = [i for i, n in Counter(e.id for e in examples).items() if n > 1]
    if repeated:
        example = next(e for e in examples if e.id == repeated[0])
        raise InputError(
            f"{name} holds the same record more than once.",
            example.quoted,
            "Remove the repeats, or give them own ids.",
        )


def _require_disjoint(name: str, examples: Sequence[Example], other: str, others: Sequence[Example]) -> None:
    known = {(e.prompt, e.answer) for e in others}
    if both := [e for e in examples if (e.prompt, e.answer) in known]:
        raise overlap(name, other, both)


def overlap(name: str, other: str, both: Sequence[Example], place: str = "") -> InputError:
    """That the sets `name` and `other` have these examples in common."""
    where = f"{place}{len(both)} shared, the first is {both[0].quoted}"
    return InputError(f"{name} and {other} overlap.", where, f"Remove these records from one of the two ({other}).")


def _canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(_canonical(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of one of our own files, none if it is absent; for files of other people see `expunge.data.sources`."""
    if not path.is_file():
        return []
    rows = []
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"This line is not JSON: {error}.", f"{path}, line {number}") from error
        if not isinstance(row, dict):
            raise InputError("This line is not a JSON object.", f"{path}, line {number}")
        rows.append(row)
    return rows


def _read_examples(path: Path) -> tuple[Example, ...]:
    return tuple(_example(row, f"{path}, record {n}") for n, row in enumerate(_read_lines(path), start=1))


def _example(row: Mapping[str, Any], where: str) -> Example:
    if "text" in row and "prompt" not in row:
        row = {"answer": row["text"], **{k: v for k, v in row.items() if k != "text"}}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in {"prompt": "", **row}.items()}
    wrong = [k for k, v in values.items() if k not in _FIELDS or not isinstance(v, _FIELDS[k])]
    if wrong or "answer" not in values:
        culprit = f": {', '.join(wrong)}" if wrong else ""
        raise InputError(f"This is not a record of a saved request{culprit}.", where, "Save the request again.")
    return Example(**values)
