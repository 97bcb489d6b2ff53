"""Examples from JSON lines, JSON, parquet, or a `datasets` id, with errors that name file and line."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from expunge.data.example import Example
from expunge.data.forms import Question, Record, plain_question
from expunge.errors import InputError, unreadable

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".parquet")
_DATASET = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_EXTRA = "Install it with: pip install datasets pyarrow."

Placed = tuple[str, object]
"""Where a row stands, and the row."""


def read_examples(
    source: str | Path, *, split: str = "train", question: Question = plain_question
) -> tuple[Example, ...]:
    """All records of `source`, in order; instructions with an empty output are left out with a logged warning.

    Args:
        source: a .jsonl, .json (an array, or JSON lines as on the Hub) or .parquet file, or "org/name[:config]".
        split: which split of a `datasets` id; files have none.
        question: makes a prompt of a bare question; pass `Encoder.question` to follow the encoder's template.

    Raises:
        InputError: the source is missing, empty or unreadable, or one of its records is malformed; says where.
    """
    records = [_record(place, row, question) for place, row in _rows(source, split)]
    answered = [record for record in records if not record.unanswered]
    if not answered:
        raise InputError("This source holds no records.", str(source), "Give at least one record.")
    if len(answered) < len(records):
        logger.warning("%s: %d instructions without an output are left out.", source, len(records) - len(answered))
    return tuple(record.example() for record in answered)


def read_texts(source: str | Path, *, split: str = "train") -> tuple[str, ...]:
    """The passages of a source whose records have the form text; same errors as `read_examples`."""
    examples = read_examples(source, split=split)
    for number, example in enumerate(examples, start=1):
        if example.prompt:
            raise InputError("A plain text was expected here.", f"{source}, record {number}", 'Use {"text": ...}.')
    return tuple(example.answer for example in examples)


def passages() -> tuple[str, ...]:
    """The 24 plain passages that come with the package, for requests that bring no text of their own."""
    with as_file(files("expunge.data") / "texts" / "passages.jsonl") as path:
        return read_texts(path)


def instructions(question: Question) -> tuple[Example, ...]:
    """The 96 everyday instructions that come with the package, made prompts by `question`."""
    with as_file(files("expunge.data") / "texts" / "instructions.jsonl") as path:
        return read_examples(path, question=question)


def read_rows(source: str | Path, *, split: str = "train") -> list[dict[str, Any]]:
    """The records of a source as they stand, for a benchmark that knows their form."""
    return [dict(_record(place, row, plain_question).row) for place, row in _rows(source, split)]


def _record(place: str, row: object, question: Question) -> Record:
    if not isinstance(row, dict):
        raise InputError(f"A record must be a JSON object, not {type(row).__name__}.", place)
    return Record(row, place, question)


def _rows(source: str | Path, split: str) -> Iterator[Placed]:
    path = Path(source)
    if path.is_file():
        return _file_rows(path)
    if path.is_dir():
        raise InputError("This is a folder, not a file.", str(path), f"Give one {', '.join(SUFFIXES)} file in it.")
    match = _DATASET.fullmatch(str(source)) if path.suffix not in SUFFIXES else None
    if match is None:
        raise InputError("There is no such file.", str(source), "Check the path.")
    return _dataset_rows(match["name"], match["config"], split)


def _file_rows(path: Path) -> Iterator[Placed]:
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix not in SUFFIXES:
        raise InputError("This kind of file is not known.", str(path), f"Known: {', '.join(SUFFIXES)}.")
    text = _read_text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _array_rows(path, text)
    return _line_rows(path, text)


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError("This file is not UTF-8 text.", f"{path}, line {line}", "Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"This file cannot be read: {unreadable(error)}.", str(path)) from error


def _line_rows(path: Path, text: str) -> Iterator[Placed]:
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parse(line, place, "Every line must be one JSON object.")


def _array_rows(path: Path, text: str) -> Iterator[Placed]:
    return _numbered(f"{path}, record", _parse(text, str(path), "The file must be one JSON array of objects."))


def _parse(text: str, place: str, fix: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except _Repeated as error:
        raise InputError(f"A record has {error.args[0]!r} twice.", place, "Leave one of the two.") from error
    except UnicodeEncodeError as error:
        raise InputError("A text holds half of a character, a lone surrogate.", place, "Write it whole.") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise InputError(f"Malformed JSON: {error.msg} at {at}.", place, fix) from error
    except (ValueError, RecursionError) as error:
        raise InputError("Malformed JSON: a number too long, or nested too deep.", place, fix) from error


class _Repeated(ValueError):
    """A name that stands in one object twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; `json` alone would let the last of equal names win in silence."""
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise _Repeated(name)
    return dict(pairs)


def _numbered(prefix: str, rows: Iterable[object]) -> Iterator[Placed]:
    return ((f"{prefix} {number}", row) for number, row in enumerate(rows, start=1))


def _parquet_rows(path: Path) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError("Reading parquet needs pyarrow.", str(path), _EXTRA) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"This is not a readable parquet file: {error}.", str(path)) from error
    return _numbered(f"{path}, row", rows)


def _dataset_rows(name: str, config: str | None, split: str) -> Iterator[Placed]:
    place = f"{name}:{config}" if config else name
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("Reading a data set from the Hub needs `datasets`.", place, _EXTRA) from error
    try:
        # No trust_remote_code: datasets 4 runs no scripts and rejects the argument.
        rows = load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:  # DatasetNotFoundError is an OSError; bad configurations are ValueErrors
        fix = "Check its name, configuration, split and the network; or give a file."
        raise InputError(f"There is no such file, and no such data set: {error}", f"{place}, {split}", fix) from error
    return _numbered(f"{place}, {split} row", rows)
