"""The ledger: which deletion requests came in, when each was fulfilled, by what, and which model that left.

    LEDGER/ledger.json          entries in order, each with the sha256 of the one before it
    LEDGER/requests/<id>/       what was asked, as `Request.save` writes it
    LEDGER/removed/<id>.safetensors     what the run left for later ones of its kind, such as the rows of a projection;
                                        <id>@2 where it was carried out again

Entries are only ever added. Whoever changes an old one breaks the chain of hashes, and `check` says where.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open

from expunge.continual.intake import take_in
from expunge.data.example import Example
from expunge.data.forms import Template
from expunge.errors import InputError, nearest, unreadable
from expunge.models.storage import atomic_write_text, sha256
from expunge.request import NAME, Request

VERSION = 1

ADAPTERS: Final = "adapters"
MLP_ROWS: Final = "rows at mlp"
"""Kinds of carried files that there are in ledgers whose entries do not name them yet."""

_LATER: Final[dict[str, Any]] = {"lead": None, "known": {}, "carries": "", "beside": {}, "template": "plain"}
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
        kind: a request came in, was carried out, or was withdrawn while it waited. Of two that carried out the same
            request the later one counts: it began where the other had begun, and nothing came between.
        request: its id.
        time: UTC, ISO 8601.
        previous: sha256 of the entry before this one, as it stands in the file; empty for the first.
        reason: why it was asked, in the words of whoever asked.
        data: sha256 of each part of the request.
        template: how its questions are put to the model, see `Encoder`.
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

    kind: Literal["received", "fulfilled", "withdrawn"]
    request: str
    time: str
    previous: str
    reason: str = ""
    data: dict[str, str] = Field(default_factory=dict)
    template: Template = "plain"
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

    @property
    def weights_before(self) -> dict[str, str]:
        """`model_before`; some ledgers have what lay in folders below the model there too, and that was none of it."""
        return _own(self.model_before)

    @property
    def weights_after(self) -> dict[str, str]:
        """`model_after`, likewise."""
        return _own(self.model_after)

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


def _own(hashes: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in hashes.items() if "/" not in name}


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
        return self._of("received")

    def fulfilled(self) -> dict[str, Entry]:
        """Those carried out, by id, in the order in which they were."""
        return self._of("fulfilled")

    def before(self, name: str) -> dict[str, Entry]:
        """As `fulfilled`, but for the request `name`: what came before it is carried out, for the first time or again.

        Raises:
            InputError: another request was carried out after it.
        """
        done = self.fulfilled()
        later = list(done)[list(done).index(name) + 1 :] if name in done else []
        if later:
            raise InputError(
                f"Request {later[0]!r} was carried out after {name!r}, on the model that this one left.",
                str(self.file),
                "Only the last request carried out can be carried out again.",
            )
        return {other: entry for other, entry in done.items() if other != name}

    def withdrawn(self) -> dict[str, Entry]:
        """Those withdrawn, by id."""
        return self._of("withdrawn")

    def _of(self, kind: str) -> dict[str, Entry]:
        """The last entry of that kind for each request, by id, in order."""
        return {entry.request: entry for entry in self.entries() if entry.kind == kind}

    def pending(self) -> tuple[str, ...]:
        """Ids of the requests that wait, in order."""
        closed = {entry.request for entry in self.entries() if entry.kind != "received"}
        return tuple(name for name in self.received() if name not in closed)

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

    def carried(self, kind: str, done: Iterable[Entry] | None = None) -> tuple[Entry, Path] | None:
        """The last file of that kind and the entry whose run left it, or None; InputError for another than was kept.

        Args:
            kind: of the file.
            done: the entries to look at; all of `fulfilled` where None.
        """
        done = self.fulfilled().values() if done is None else done
        kept = [entry for entry in done if entry.removed and self._kind(entry) == kind]
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
        path = self._removed(entry.request, self.times(entry.request))
        if not path.is_file() or sha256(path) != entry.removed:
            raise InputError("What earlier requests removed is missing or was changed.", str(path))
        return path

    def standing(self) -> dict[str, Entry]:
        """As `received`, without those withdrawn."""
        gone = self.withdrawn()
        return {name: entry for name, entry in self.received().items() if name not in gone}

    def kept(self) -> list[Example]:
        """What the requests keep, one after another."""
        return [fact for entry in self.standing().values() for fact in self._stored(entry).retain]

    @property
    def template(self) -> Template:
        """How the questions of all requests are put to the model."""
        return next((entry.template for entry in self.standing().values()), "plain")

    def add(self, request: Request, name: str, reason: str = "", template: Template = "plain") -> list[str]:
        """Take in a request; what a reader should know about it, in sentences.

        Raises:
            InputError: the id is taken or cannot be a folder's name, the template is not that of those before it, a
                fact was asked for already, the request wants to keep what another had removed, or a request that waits
                would have nothing to retain.
        """
        if not NAME.fullmatch(name):
            raise InputError("A request's id must be usable as a folder's name.", repr(name), "Use letters and digits.")
        with self._locked():
            received, done = self.received(), self.fulfilled()
            if name in received:
                raise InputError(f"There is a request {name!r} already.", str(self.file), "Give another --id.")
            if others := {entry.template for entry in self.standing().values()} - {template}:
                raise InputError(
                    f"The requests of this ledger are put to the model with the template {others.pop()!r}.",
                    f"template {template!r}",
                    "Give all requests of one model the same.",
                )
            known = {other: self._stored(received[other]) for other in (*done, *self.pending())}
            notes = take_in(request, name, known, done, self.pending())
            request.save(self.folder / "requests" / name)
            own = {"reason": reason, "data": request.hashes(), "template": template}
            self._append({"kind": "received", "request": name, **own})
        return notes

    def fulfil(self, name: str, values: Mapping[str, object], removed: Path | None = None, time: int = 1) -> None:
        """Write down that the request `name` was carried out.

        Args:
            name: the request's id.
            values: fields of its entry.
            removed: the file that its run left for later ones of its kind; a copy is kept.
            time: the how-manieth time it is; above 1, this run takes the place of the one before.

        Raises:
            InputError: it does not wait or, above 1, was not carried out so often, as the last; or its run began with
                another model than the one that the request before it left, or than it began with the first time.
        """
        with self._locked():
            if self.times(name) + 1 != time or (time == 1 and name not in self.pending()):
                raise InputError(f"The request {name!r} does not wait.", str(self.file))
            first, before = self.fulfilled().get(name), self.before(name)
            last = next(reversed(before.values()), None)
            if last and values.get("model_before") != last.weights_after:
                raise InputError(
                    "The ledger ends with another model than this run began with.",
                    f"request {name}, {values.get('run', 'its run')}",
                    f"Remove that folder and carry the request out on {last.run}/model, which {last.request!r} left.",
                )
            if first and values.get("model_before") != first.weights_before:
                raise InputError(
                    f"Request {name!r} began with another model the first time.",
                    f"request {name}, {values.get('run', 'its run')}",
                    "Carry it out again on that one.",
                )
            digest = ""
            if removed is not None:
                kept = self._removed(name, time)
                kept.parent.mkdir(exist_ok=True)
                shutil.copyfile(removed, kept)
                digest = sha256(removed)
            self._append({"kind": "fulfilled", "request": name, "removed": digest, **values})

    def withdraw(self, name: str, reason: str = "") -> None:
        """Write down that the request `name`, which waits, is not to be carried out; InputError where it does not."""
        with self._locked():
            if name not in self.pending():
                raise InputError(f"The request {name!r} does not wait.", str(self.file), "See `expunge request list`.")
            self._append({"kind": "withdrawn", "request": name, "reason": reason})

    def times(self, name: str) -> int:
        """How often the request `name` was carried out."""
        return sum(entry.kind == "fulfilled" and entry.request == name for entry in self.entries())

    def _removed(self, name: str, time: int) -> Path:
        return self.folder / "removed" / f"{numbered(name, time)}.safetensors"

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


def numbered(name: str, time: int) -> str:
    """What the files of a request are called that is carried out for the first time, the second (NAME@2), ..."""
    return name if time == 1 else f"{name}@{time}"
