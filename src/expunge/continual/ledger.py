"""The ledger: which deletion requests came in, when each was fulfilled, by what, and which model that left.

    LEDGER/ledger.json          entries in order, each with the sha256 of the one before it
    LEDGER/requests/<id>/       what was asked, as `Request.save` writes it
    LEDGER/removed/<id>.safetensors     what the run left for later ones of its kind, such as the rows of a projection

Entries are only ever added. Whoever changes an old one breaks the chain of hashes, and `check` says where.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open

from expunge.data.example import Example
from expunge.errors import InputError, nearest, unreadable
from expunge.models.storage import atomic_write_text, sha256
from expunge.request import NAME, Request

VERSION = 1

ADAPTERS: Final = "adapters"
MLP_ROWS: Final = "rows at mlp"
"""Kinds of carried files that there are in ledgers whose entries do not name them yet."""

_LATER: Final[dict[str, Any]] = {"lead": None, "known": {}, "carries": "", "beside": {}}
"""Fields that the first ledgers did not have, each with what stands there without a value."""


class Known(BaseModel):
    """Log-odds of a forget item before anything was done for its request, and of its made-up twin where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_odds: float
    made_up: float | None = None


class Standing(BaseModel):
    """How well a request holds at some moment: its forget items alone, and after the attack that brought back most.

    recovery: what came back, as a share of what was known before the request was fulfilled; R of the audit
    (`audit.control`) against ignorance or made-up subjects, whichever says more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: float
    log_odds: float
    chance: float
    attack: str = ""
    attacked_log_odds: float | None = None
    recovery: float | None = None


class Entry(BaseModel):
    """One line of the ledger. What belongs to the other kind of entry is empty.

    Args:
        kind: a request came in, or was carried out.
        request: its id.
        time: UTC, ISO 8601.
        previous: sha256 of the entry before this one, as it stands in the file; empty for the first.
        reason: why it was asked, in the words of whoever asked.
        data: sha256 of each part of the request.
        method: how it was carried out.
        run: folder of the run, as it was given.
        model_before: sha256 of each weight file that the run began with.
        model_after: likewise of the model that it left.
        verdict: of the run's record.
        before: log-odds of the forget items before anything was done for this request, mean.
        lead: in ledgers from before `known`, how far they stood above made-up subjects; None where too few have one.
        known: what R is measured by, forget item by forget item, by their ids.
        removed: sha256 of the file that the run left for later ones of its kind; empty for most methods.
        carries: the kind of that file, such as "rows at mlp".
        beside: sha256 of the config, tokenizer and template files beside the weights of `model_after`.
        standings: of this request and of all that were fulfilled before it, by id, in the model that the run left.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Literal["received", "fulfilled"]
    request: str
    time: str
    previous: str
    reason: str = ""
    data: dict[str, str] = Field(default_factory=dict)
    method: str = ""
    run: str = ""
    model_before: dict[str, str] = Field(default_factory=dict)
    model_after: dict[str, str] = Field(default_factory=dict)
    verdict: str = ""
    before: float | None = None
    lead: float | None = None
    known: dict[str, Known] = Field(default_factory=dict)
    removed: str = ""
    carries: str = ""
    beside: dict[str, str] = Field(default_factory=dict)
    standings: dict[str, Standing] = Field(default_factory=dict)

    def knew(self, ids: Iterable[str]) -> Mapping[str, Known]:
        """`known`; in ledgers from before it each item counts as their mean."""
        odds = self.before or 0.0
        every = Known(log_odds=odds, made_up=None if self.lead is None else odds - self.lead)
        return self.known or dict.fromkeys(ids, every)

    def digest(self) -> str:
        """sha256 of the entry; one without the later fields is as it was before there were such."""
        own = self.model_dump(mode="json")
        told = {name: value for name, value in own.items() if name not in _LATER or value != _LATER[name]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Ledger:
    """A folder with a ledger in it; an absent one is empty.

    Two processes that add at once wait for each other, and a reader sees whole entries only.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Ledger:
        """The one in a folder; InputError where there is none."""
        found = cls(folder)
        if not found.file.is_file():
            raise InputError("There is no ledger here.", str(folder), "`expunge request add` begins one; see --ledger.")
        return found

    @property
    def file(self) -> Path:
        """The entries."""
        return self.folder / "ledger.json"

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order; InputError for a file that is none, another version, or a broken chain."""
        if not self.file.is_file():
            return ()
        try:
            tree = json.loads(self.file.read_text(encoding="utf-8"))
            if tree["version"] != VERSION:
                raise InputError(f"The ledger has version {tree['version']!r}, not {VERSION}.", str(self.file))
            entries = tuple(Entry.model_validate(entry) for entry in tree["entries"])
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The ledger cannot be read: {unreadable(error)}.", str(self.file)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("This is not a ledger, or it was damaged.", str(self.file)) from error
        for number, (entry, previous) in enumerate(zip(entries, ("", *(e.digest() for e in entries)), strict=False)):
            if entry.previous != previous:
                raise InputError(
                    f"Entry {number} was changed after entry {number + 1} was written.",
                    str(self.file),
                    "Restore the ledger from a copy.",
                )
        return entries

    def received(self) -> dict[str, Entry]:
        """The requests by id, in order."""
        return {entry.request: entry for entry in self.entries() if entry.kind == "received"}

    def fulfilled(self) -> dict[str, Entry]:
        """Those carried out, by id, in the order in which they were."""
        return {entry.request: entry for entry in self.entries() if entry.kind == "fulfilled"}

    def pending(self) -> tuple[str, ...]:
        """Ids of the requests that wait, in order."""
        done = self.fulfilled()
        return tuple(name for name in self.received() if name not in done)

    def request(self, name: str) -> Request:
        """What the request `name` asked; InputError for an unknown one, or data other than those received."""
        received = self.received()
        if name not in received:
            raise InputError(f"There is no request {name!r}.", str(self.file), nearest(name, received))
        return self._stored(received[name])

    def _stored(self, entry: Entry) -> Request:
        """The data of a request that was received; InputError where they are others."""
        folder = self.folder / "requests" / entry.request
        request = Request.load(folder)
        if request.hashes() != entry.data:
            raise InputError("The data of a request are not those received.", str(folder))
        return request

    def carried(self, kind: str) -> tuple[Entry, Path] | None:
        """The last file of that kind and the entry whose run left it, or None; InputError for another than was kept."""
        kept = [entry for entry in self.entries() if entry.removed and self._kind(entry) == kind]
        if not kept:
            return None
        left = next(entry for entry in kept if entry.removed == kept[-1].removed)  # old ledgers have copies of it since
        return left, self._kept_file(kept[-1])

    def _kind(self, entry: Entry) -> str:
        """What the file of an entry is; in old ledgers its tensors tell."""
        if entry.carries:
            return entry.carries
        with safe_open(self._kept_file(entry), framework="numpy") as file:
            return MLP_ROWS if all(name.startswith("block.") for name in file.keys()) else ADAPTERS  # noqa: SIM118

    def _kept_file(self, entry: Entry) -> Path:
        path = self._removed(entry.request)
        if not path.is_file() or sha256(path) != entry.removed:
            raise InputError("What earlier requests removed is missing or was changed.", str(path))
        return path

    def add(self, request: Request, name: str, reason: str = "") -> list[str]:
        """Take in a request; what a reader should know about it, in sentences.

        Raises:
            InputError: the id is taken or cannot be a folder's name, a fact was asked for already, the request wants to
                keep what it or another had removed, or a request that waits would have nothing to retain.
        """
        if not NAME.fullmatch(name):
            raise InputError("A request's id must be usable as a folder's name.", repr(name), "Use letters and digits.")
        with self._locked():
            received, done = self.received(), self.fulfilled()
            if name in received:
                raise InputError(f"There is a request {name!r} already.", str(self.file), "Give another --id.")
            _refuse_unwanted(request, request, "this request")
            notes: list[str] = []
            known = {other: self._stored(received[other]) for other in (*done, *self.pending())}
            for other, earlier in known.items():
                _refuse_repeats(request, earlier, other, fulfilled=other in done)
                _refuse_unwanted(request, earlier, f"request {other!r}")
                notes += _overlaps(request, earlier, other)
            _refuse_no_retain(request, name, known, self.pending())
            request.save(self.folder / "requests" / name)
            self._append({"kind": "received", "request": name, "reason": reason, "data": request.hashes()})
        return notes

    def fulfil(self, name: str, values: Mapping[str, object], removed: Path | None = None) -> None:
        """Write down that the request `name` was carried out.

        Args:
            name: the request's id.
            values: fields of its entry.
            removed: the file that its run left for later ones of its kind; a copy is kept.

        Raises:
            InputError: it does not wait, or its run began with another model than the ledger ends with.
        """
        with self._locked():
            if name not in self.pending():
                raise InputError(f"The request {name!r} does not wait.", str(self.file))
            last = next(reversed(self.fulfilled().values()), None)
            if last and values.get("model_before") != last.model_after:
                raise InputError(
                    "The ledger ends with another model than this run began with.",
                    f"request {name}, {values.get('run', 'its run')}",
                    f"Remove that folder and carry the request out on {last.run}/model, which {last.request!r} left.",
                )
            digest = ""
            if removed is not None:
                self._removed(name).parent.mkdir(exist_ok=True)
                shutil.copyfile(removed, self._removed(name))
                digest = sha256(removed)
            self._append({"kind": "fulfilled", "request": name, "removed": digest, **values})

    def _removed(self, name: str) -> Path:
        return self.folder / "removed" / f"{name}.safetensors"

    def _append(self, values: Mapping[str, object]) -> None:
        entries = self.entries()
        previous = entries[-1].digest() if entries else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry.model_validate({"time": now, "previous": previous, **values})
        tree = {"version": VERSION, "entries": [e.model_dump(mode="json") for e in (*entries, entry)]}
        atomic_write_text(self.file, json.dumps(tree, indent=1, sort_keys=True) + "\n")

    def _locked(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")


def without(examples: Iterable[Example], *others: Iterable[Example]) -> list[Example]:
    """Those of `examples` whose fact none of `others` holds."""
    known = {_fact(e) for each in others for e in each}
    return [e for e in examples if _fact(e) not in known]


def joint_retain(so_far: Sequence[Request], received: Iterable[Request]) -> list[Example]:
    """What the requests `so_far` keep, without what one of them wants forgotten or any of `received` attacks with."""
    kept = {_fact(e): e for each in so_far for e in each.retain}
    return without(kept.values(), *(each.forget for each in so_far), *(each.attack for each in received))


def _refuse_repeats(request: Request, earlier: Request, other: str, *, fulfilled: bool) -> None:
    if again := _shared(request.forget, earlier.forget):
        state = "was fulfilled already" if fulfilled else "waits already"
        raise InputError(
            f"{len(again)} of {len(request.forget)} facts are those of request {other!r}, which {state}.",
            f"{again[0].prompt[:80]!r} -> {again[0].answer[:40]!r}",
            "Leave them out.",
        )


def _refuse_unwanted(request: Request, other: Request, named: str) -> None:
    for name, examples in (("retain", request.retain), ("attack", request.attack)):
        if kept := _shared(examples, other.forget):
            raise InputError(
                f"The {name} set holds {len(kept)} facts that {named} wants forgotten.",
                f"{kept[0].prompt[:80]!r} -> {kept[0].answer[:40]!r}",
                f"Leave them out of --{name}.",
            )


def _refuse_no_retain(request: Request, name: str, known: Mapping[str, Request], waiting: Sequence[str]) -> None:
    """InputError where, carried out in order, this request or one that waits would have nothing to retain; one that had
    nothing before waits for another."""
    order = {**known, name: request}
    before, after = tuple(known.values()), tuple(order.values())
    for number, each in enumerate(order, start=1):
        asked = each == name or (each in waiting and joint_retain(before[:number], before))
        if asked and not joint_retain(after[:number], after):
            raise InputError(
                f"Nothing would be left to retain for request {each!r}.",
                "neither in its own retain set nor in those of requests before it",
                "Give facts with --retain that no request forgets or attacks with.",
            )


def _overlaps(request: Request, earlier: Request, other: str) -> Iterable[str]:
    """What is allowed and worth knowing."""
    if dropped := _shared(request.forget, earlier.retain):
        yield f"{len(dropped)} facts were kept for request {other!r}; from now on they are not."
    if tried := _shared(request.forget, earlier.attack):
        yield f"{len(tried)} facts are in the attack set of request {other!r}; once forgotten, its attacks do without."
    if tried := _shared(request.retain, earlier.attack):
        yield f"{len(tried)} facts to retain are in the attack set of request {other!r}; training does not see them."
    if kept := _shared(request.attack, earlier.retain):
        yield f"{len(kept)} facts to attack with were kept for request {other!r}; from now on they are not."
    subjects = {e.subject for e in request.forget if e.subject} & {e.subject for e in earlier.forget}
    if subjects:
        yield f"Request {other!r} is about {', '.join(sorted(subjects)[:3])} too, with other facts."


def _shared(some: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    known = {_fact(e) for e in others}
    return [e for e in some if _fact(e) in known]


def _fact(example: Example) -> tuple[str, ...]:
    """Prompt and answer, whatever their case and white space."""
    return tuple(" ".join(text.split()).casefold() for text in (example.prompt, example.answer))
