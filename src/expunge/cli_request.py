"""`expunge request ...`: deletion requests as they come in, one after another, in a ledger."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.catalogue import DEFAULT_ATTACKS, DEFAULT_METHOD, NAMED_ATTACKS
from expunge.console import Bars, guard, named, out, set_option
from expunge.errors import SETTINGS_PAGE

if TYPE_CHECKING:
    from expunge.continual.ledger import Entry

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Deletion requests, one after another.")

Place = Annotated[Path, typer.Option("--ledger", help="Folder of the ledger.")]
DEFAULT = Path("ledger")


@app.command()
def add(
    forget: Annotated[str, typer.Option(help="What must go: JSONL, JSON, parquet or a `datasets` id.")],
    retain: Annotated[str | None, typer.Option(help="What must stay, beside what earlier requests keep.")] = None,
    attack: Annotated[
        str | None, typer.Option(help="Facts of the same kind about others, for relearn-related.")
    ] = None,
    name: Annotated[str | None, typer.Option("--id", help="Id of the request; numbered where absent.")] = None,
    reason: Annotated[str, typer.Option(help="Why, or by whom, it was asked.")] = "",
    ledger: Place = DEFAULT,
) -> None:
    """Take in a request. Nothing is done to any model yet.

    **Example:** `expunge request add --forget ada.jsonl --retain others.jsonl --id 2026-017 --reason "GDPR, art. 17"`
    """

    def work() -> None:
        from expunge.continual.ledger import Ledger
        from expunge.source import read_request

        book = Ledger(ledger)
        taken = book.received()
        numbered = (f"request-{n}" for n in count(len(taken) + 1))
        chosen = name or next(each for each in numbered if each not in taken)
        request = read_request(forget, retain, attack=attack)
        for note in book.add(request, chosen, reason):
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
    ledger: Place = DEFAULT,
) -> None:
    """Carry out what waits, one request after another, and score and attack all earlier ones again.

    **Example:** `expunge request apply ./model --output runs/2026`

    Interrupted, it goes on when called again; until a request is done, the model of the one before it is the last.
    """

    def work() -> None:
        from expunge.attacks.suites import expand
        from expunge.continual.fulfil import Requests
        from expunge.continual.ledger import Ledger
        from expunge.pipeline import sort_settings
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
        book = Ledger.at(ledger)
        with Bars().shown() as progress:
            done = Requests(book, output, shared, progress).fulfil(model, names or ())
        if not done:
            out.print("Nothing waits.", markup=False)
            return
        _print_standings(done[-1])
        out.print(f"Model: {Path(done[-1].run) / 'model'}", markup=False, soft_wrap=True)

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
        done, received = book.fulfilled(), book.received()
        last = next(reversed(done.values()), None)
        shown = Table(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
        for column in ("request", "received", "fulfilled", "method", "verdict", "log-odds", "came back"):
            shown.add_column(column, overflow="fold", justify="right" if column[:4] in ("log-", "came") else "left")
        for name, entry in received.items():
            mine = done.get(name)
            cells = (mine.time[:10], mine.method, mine.verdict) if mine else ("waits", "", "")
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
        if name not in done:
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
        from expunge.continual.fulfil import verify as check
        from expunge.continual.ledger import Ledger

        for line in check(Ledger.at(ledger), model):
            out.print(f"ok  {line}", markup=False, soft_wrap=True)

    guard(work)


def _print_standings(entry: Entry) -> None:
    """Every request so far in the model that the run of `entry` left."""
    from rich.table import Table

    shown = Table("request", "accuracy [chance]", "log-odds", "strongest attack", "came back at most")
    for name, standing in entry.standings.items():
        level = f"{standing.accuracy:.2f} [{standing.chance:.2f}]"
        odds, back = _standing(entry, name)
        shown.add_row(name, level, odds, standing.attack, back)
    out.print(shown)


def _standing(entry: Entry | None, name: str) -> tuple[str, str]:
    """Log-odds, and the share that came back, of a request in the model that the run of `entry` left."""
    standing = entry.standings.get(name) if entry else None
    if standing is None:
        return "", ""
    return f"{standing.log_odds:+.2f}", "" if standing.recovery is None else f"{100 * standing.recovery:.0f} %"
