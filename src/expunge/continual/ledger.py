"""The ledger: which deletion requests came in, when each was fulfilled, by what, and which model that left.

    LEDGER/ledger.json          entries in order, each with the sha256 of the one before it
    LEDGER/requests/<id>/       what was asked, as `Request.save` writes it
    LEDGER/removed/<id>.safetensors     what projections had removed by then, where the method makes some

Entries are only ever added. Whoever changes an old one breaks the chain of hashes, and `check` says where.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.data.example import Example
from expunge.errors import InputError, nearest
from expunge.models.storage import atomic_write_text, sha256
from expunge.request import Request

VERSION = 1


class Standing(BaseModel):
    """How well a request holds at some moment: its forget items alone, and after the attack that brought back most.

    recovery: what came back, as a share of what was known before the request was fulfilled; against ignorance (log-odds
    0) or made-up subjects, whichever says more (`continual.standing`).
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
        before: log-odds of the forget items before anything was done for this request.
        lead: likewise, how far they stood above made-up subjects; None where too few have one.
        removed: sha256 of the file of what projections had removed; empty for other methods.
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
    removed: str = ""
    standings: dict[str, Standing] = Field(default_factory=dict)

    def digest(self) -> str:
        """sha256 of the entry; one without `lead` is as it was before there was such a field."""
        told = self.model_dump(mode="json", exclude={"lead"} if self.lead is None else None)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Ledger:
    """A folder with a ledger in it; an absent one is empty.

    Two processes that add at once wait for each other, and a reader sees whole entries only.
    """

    folder: Path

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
        except (ValueError, ValidationError, KeyError, TypeError) as error:
            raise InputError("This is not a ledger, or it was damaged.", f"{self.file}: {error}") from error
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

    def removed(self) -> Path | None:
        """The file of what projections have removed so far, or None; InputError if it is another than was kept."""
        kept = [entry for entry in self.entries() if entry.removed]
        if not kept:
            return None
        path = self._removed(kept[-1].request)
        if not path.is_file() or sha256(path) != kept[-1].removed:
            raise InputError("What earlier requests removed is missing or was changed.", str(path))
        return path

    def add(self, request: Request, name: str, reason: str = "") -> list[str]:
        """Take in a request; what a reader should know about it, in sentences.

        Raises:
            InputError: the id is taken or cannot be a folder's name, a fact was asked for already, or the request wants
                to keep what another had removed.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError("A request's id must be usable as a folder's name.", repr(name), "Use letters and digits.")
        with self._locked():
            received, done = self.received(), self.fulfilled()
            if name in received:
                raise InputError(f"There is a request {name!r} already.", str(self.file), "Give another --id.")
            notes: list[str] = []
            for other, entry in received.items():
                earlier = self._stored(entry)
                _refuse_repeats(request, earlier, other, fulfilled=other in done)
                notes += _overlaps(request, earlier, other)
            request.save(self.folder / "requests" / name)
            self._append({"kind": "received", "request": name, "reason": reason, "data": request.hashes()})
        return notes

    def fulfil(self, name: str, values: Mapping[str, object], removed: Path | None = None) -> None:
        """Write down that the request `name` was carried out.

        Args:
            name: the request's id.
            values: fields of its entry.
            removed: file of what projections have removed by now; a copy is kept.
        """
        with self._locked():
            if name not in self.pending():
                raise InputError(f"The request {name!r} does not wait.", str(self.file))
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


def _refuse_repeats(request: Request, earlier: Request, other: str, *, fulfilled: bool) -> None:
    if again := _shared(request.forget, earlier.forget):
        state = "was fulfilled already" if fulfilled else "waits already"
        raise InputError(
            f"{len(again)} of {len(request.forget)} facts are those of request {other!r}, which {state}.",
            f"{again[0].prompt[:80]!r} -> {again[0].answer[:40]!r}",
            "Leave them out.",
        )
    for name, examples in (("retain", request.retain), ("attack", request.attack)):
        if kept := _shared(examples, earlier.forget):
            raise InputError(
                f"The {name} set holds {len(kept)} facts that request {other!r} wants forgotten.",
                f"{kept[0].prompt[:80]!r} -> {kept[0].answer[:40]!r}",
                f"Leave them out of --{name}.",
            )


def _overlaps(request: Request, earlier: Request, other: str) -> Iterable[str]:
    """What is allowed and worth knowing."""
    if dropped := _shared(request.forget, earlier.retain):
        yield f"{len(dropped)} facts were kept for request {other!r}; from now on they are not."
    subjects = {e.subject for e in request.forget if e.subject} & {e.subject for e in earlier.forget}
    if subjects:
        yield f"Request {other!r} is about {', '.join(sorted(subjects)[:3])} too, with other facts."


def _shared(some: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    known = {(e.prompt, e.answer) for e in others}
    return [e for e in some if (e.prompt, e.answer) in known]
