"""`expunge request ...`: deletion requests as they come in, one after another, in a ledger."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expunge.catalogue import DEFAULT_ATTACKS, DEFAULT_METHOD, NAMED_ATTACKS
from expunge.cli_audit import LEVEL, FailOn, print_verdict
from expunge.console import App, Bars, guard, named, out, set_option
from expunge.errors import SETTINGS_PAGE, InputError
from expunge.unlearning.interrupts import whole_imports

if TYPE_CHECKING:
    from expunge.continual.ledger import Entry

app = App(no_args_is_help=True, rich_markup_mode="markdown", help="Deletion requests, one after another.")

Place = Annotated[Path, typer.Option("--ledger", help="Folder of the ledger.")]
DEFAULT = Path("ledger")


@app.command()
def add(
    forget: Annotated[str, typer.Option(help="What must go: JSONL, JSON, parquet or a `datasets` id.")],
    retain: Annotated[str | None, typer.Option(help="What must stay, beside what earlier requests keep.")] = None,
    attack: Annotated[
        str | None, typer.Option(help="Facts of the same kind about others, for relearn-related.")
    ] = None,
    template: Annotated[
        Literal["plain", "chat"], typer.Option(help="How the questions are put to the model; one for all requests.")
    ] = "plain",
    name: Annotated[str | None, typer.Option("--id", help="Id of the request; numbered where absent.")] = None,
    reason: Annotated[str, typer.Option(help="Why, or by whom, it was asked.")] = "",
    ledger: Place = DEFAULT,
) -> None:
    """Take in a request. Nothing is done to any model yet.

    **Example:** `expunge request add --forget ada.jsonl --retain others.jsonl --id 2026-017 --reason "GDPR, art. 17"`
    """

    def work() -> None:
        with whole_imports():
            from expunge.continual.ledger import Ledger
            from expunge.data.distractors import require_options
            from expunge.source import read_request

        book = Ledger(ledger)
        taken = book.received()
        numbered = (f"request-{n}" for n in count(len(taken) + 1))
        chosen = name or next(each for each in numbered if each not in taken)
        request = read_request(forget, retain, attack=attack, template=template, kept=book.kept())
        require_options(request.forget)
        for note in book.add(request, chosen, reason, template):
            out.print(f"Note: {note}", markup=False, soft_wrap=True)
        out.print(f"Received {chosen}: {len(request.forget)} facts to forget.", markup=False)
        out.print(f"Next: expunge request apply MODEL --output RUN --ledger {ledger}", markup=False, soft_wrap=True)

    guard(work)


@app.command()
def apply(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id; later the last model.", show_default=False)
    ],
    names: Annotated[list[str] | None, typer.Argument(metavar="ID", help="All that wait where absent.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("runs/requests"),
    method: Annotated[str, typer.Option(help="See `expunge list methods`.")] = DEFAULT_METHOD,
    attacks: Annotated[
        str | None,
        typer.Option(help=f"{NAMED_ATTACKS}; where absent {', '.join(DEFAULT_ATTACKS)}."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        set_option(
            "Set a value of the loop, of a part of the method, or of an attack (quantise.bits=[4]); repeat. "
            f"Names: {SETTINGS_PAGE}.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Carry the last request, ID, out once more from where it began.")
    ] = False,
    fail_on: Annotated[FailOn | None, typer.Option(metavar="LEVEL", help=LEVEL, show_default=False)] = None,
    ledger: Place = DEFAULT,
) -> None:
    """Carry out what waits, one request after another, and score and attack all earlier ones again.

    **Examples:** `expunge request apply ./model --output runs/2026`

    `expunge request apply ./model 2026-017 --again --set min_steps=108 --output runs/2026`

    Interrupted, it goes on when called again; until a request is done, the model of the one before it is the last.
    A request whose verdict is bad is done all the same, until `--again` puts another run in the place of that one.
    """

    def work() -> None:
        with whole_imports():
            from expunge.attacks.suites import expand
            from expunge.continual.fulfil import Requests
            from expunge.continual.ledger import Ledger
            from expunge.pipeline import gate, sort_settings
            from expunge.report.record import Record
            from expunge.settings import parse_assignments

        chosen = expand(named(attacks) or (DEFAULT_ATTACKS if attacks is None else ()), {})
        tried = {each: dict(attack.settings) for each, attack in chosen.items()}
        given: dict[str, Any] = {}
        for key, value in parse_assignments(settings or []).items():
            name, _, setting = key.partition(".")
            if name in tried:
                tried[name][setting] = value
            else:
                given[key] = value
        shared: dict[str, Any] = {"method": method, "attacks": tried, **sort_settings(given)}
        if again and len(names or ()) != 1:
            raise InputError("One request can be carried out again, the last.", "--again", "Name it: MODEL ID --again.")
        book = Ledger.at(ledger)
        with Bars().shown() as progress:
            requests = Requests(book, output, shared, progress)
            done = [requests.again(model, names[0])] if again and names else requests.fulfil(model, names or ())
        if not done:
            out.print("Nothing waits.", markup=False)
            return
        records = [Record.load(Path(entry.run)) for entry in done]
        for entry, record in zip(done, records, strict=True):
            out.print(f"{entry.request}:", markup=False, end=" ")
            print_verdict(record, Path(entry.run))
        _print_standings(done[-1], book.received())
        out.print(f"Model: {Path(done[-1].run) / 'model'}", markup=False, soft_wrap=True)
        out.print(f"Ledger: its last entry is {book.entries()[-1].digest()}", markup=False, soft_wrap=True)
        for record in records:
            gate(record, fail_on)

    guard(work)


@app.command()
def withdraw(
    name: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why it is not to be carried out.")] = "",
    ledger: Place = DEFAULT,
) -> None:
    """Take back a request that waits. It stays in the ledger, as withdrawn; its facts may be asked for anew.

    **Example:** `expunge request withdraw 2026-018 --reason "sent twice"`
    """

    def work() -> None:
        from expunge.continual.ledger import Ledger

        Ledger.at(ledger).withdraw(name, reason)
        out.print(f"Withdrawn: {name}.", markup=False)

    guard(work)


@app.command("list")
def list_(ledger: Place = DEFAULT) -> None:
    """All requests and how they stand.

    **Example:** `expunge request list`
    """

    def work() -> None:
        from rich.box import SIMPLE
        from rich.table import Table

        from expunge.continual.ledger import Ledger

        book = Ledger.at(ledger)
        done, received, withdrawn = book.fulfilled(), book.received(), book.withdrawn()
        last = next(reversed(done.values()), None)
        shown = Table(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
        for column in ("request", "received", "fulfilled", "method", "verdict", "log-odds", "came back"):
            justify: Literal["right", "left"] = "right" if column in ("log-odds", "came back") else "left"
            shown.add_column(column, overflow="fold", justify=justify, no_wrap=column == "verdict")
        for name, entry in received.items():
            mine = done.get(name)
            state = "withdrawn" if name in withdrawn else "waits"
            cells = (mine.time[:10], mine.method, mine.verdict) if mine else (state, "", "")
            shown.add_row(name, entry.time[:10], *cells, *(_standing(last, name) if mine else ("", "")))
        out.print(shown)

    guard(work)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    ledger: Place = DEFAULT,
) -> None:
    """One request: what was asked, when and why, and how it stood after every request since.

    **Example:** `expunge request show 2026-017`
    """

    def work() -> None:
        from expunge.continual.ledger import Ledger

        book = Ledger.at(ledger)
        request = book.request(name)
        entry, done = book.received()[name], book.fulfilled()
        lines = [f"received {entry.time}", f"forget {len(request.forget)} facts, retain {len(request.retain)}"]
        lines += [f"reason: {entry.reason}"] if entry.reason else []
        lines += [f"data {part}: sha256 {digest}" for part, digest in entry.data.items()]
        for other, each in done.items():
            if name in each.standings:
                odds, back = _standing(each, name)
                lines.append(f"after {other}: log-odds {odds}, came back at most {back}")
        if (times := book.times(name)) > 1:
            lines.append(f"carried out {times} times, of which the last counts")
        if taken := book.withdrawn().get(name):
            lines.append(f"withdrawn {taken.time}" + (f": {taken.reason}" if taken.reason else ""))
        elif name not in done:
            lines.append("waits")
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)

    guard(work)


@app.command()
def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of the model that is in use.", show_default=False)
    ],
    ledger: Place = DEFAULT,
) -> None:
    """Prove that a model is the one that the ledger ends with, and that no entry but the last was changed.

    Nothing in the ledger covers its last entry: compare the hash that is told with one that you kept elsewhere.

    **Example:** `expunge request verify runs/2026/2026-017/model`
    """

    def work() -> None:
        with whole_imports():
            from expunge.continual.fulfil import verify as check
            from expunge.continual.ledger import Ledger

        for line in check(Ledger.at(ledger), model):
            out.print(f"ok  {line}", markup=False, soft_wrap=True)

    guard(work)


def _print_standings(entry: Entry, order: Iterable[str]) -> None:
    """Every request so far in the model that the run of `entry` left, in the order in which they came in."""
    from rich.table import Table

    shown = Table("request", "accuracy [chance]", "log-odds", "strongest attack", "came back at most")
    for name in (each for each in order if each in entry.standings):
        standing = entry.standings[name]
        level = f"{standing.accuracy:.2f} [{standing.chance:.2f}]"
        odds, back = _standing(entry, name)
        shown.add_row(name, level, odds, standing.attack, back)
    out.print(shown)


def _standing(entry: Entry | None, name: str) -> tuple[str, str]:
    """Log-odds, and the share that came back, of a request in the model that the run of `entry` left."""
    standing = entry.standings.get(name) if entry else None
    if standing is None:
        return "", ""
    return f"{standing.log_odds:+.2f}", "unknown" if standing.recovery is None else f"{100 * standing.recovery:.0f} %"
