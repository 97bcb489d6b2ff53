"""What the command line shows while it works: bars with remaining time, one clear error, short tables."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperCommand, TyperGroup, TyperOption

from expunge.errors import ExpungeError, out_of_memory, unreadable

INTERRUPTED = 130
USAGE = 1
INTERNAL = 2
RESOURCES = 3

SECONDARY = os.environ.get("RANK", "0") != "0"
"""Whether this is one of several processes and not the one that tells; all of them tell their errors."""

FINISHED_SHOWN = 8
"""Bars of finished tasks that stay; older ones make room for what is going on."""

out = Console(highlight=False, quiet=SECONDARY)
err = Console(stderr=True, highlight=False)


def write_any_letters() -> None:
    """Have stdout and stderr escape letters that their encoding lacks: no terminal ends work that is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Bars:
    """Progress bars on stderr: done, elapsed, remaining, and the latest numbers.

    Where stderr is no terminal each finished task leaves one line instead.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[info]}"),
            console=err,
            disable=SECONDARY or not err.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self, task: str, total: int) -> None:
        """Show a bar for `task`."""
        self._tasks[task] = self._progress.add_task(escape(task), total=max(total, 1), info="")

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        """Move the bar and show the latest numbers."""
        shown = " ".join(f"{name} {value:.3g}" for name, value in info.items())
        self._progress.update(self._tasks[task], advance=n)
        if shown:
            self._progress.update(self._tasks[task], info=shown)

    def finish(self, task: str) -> None:
        """Fill the bar; work may end early."""
        bar = self._progress.tasks[self._progress.task_ids.index(self._tasks[task])]
        self._progress.update(bar.id, total=bar.completed or 1, completed=bar.completed or 1)
        for old in [task for task in self._progress.tasks if task.finished][:-FINISHED_SHOWN]:
            self._progress.remove_task(old.id)
        if not err.is_terminal and not SECONDARY:
            err.print(f"done: {task} ({bar.elapsed or 0:.0f} s)", markup=False)

    @contextmanager
    def shown(self) -> Iterator[Bars]:
        """Draw while inside."""
        with self._progress:
            yield self


def fail(what: str, where: str, fix: str, code: int) -> NoReturn:
    """Print one message of up to three lines on stderr and leave with `code`."""
    err.print(f"[bold red]error:[/] {escape(what)}")
    if where:
        err.print(f"   [bold]at:[/] {escape(where)}", soft_wrap=True)
    if fix:
        err.print(f"   [bold]do:[/] {escape(fix)}")
    raise Finished(code)


def set_option(told: str) -> Any:
    """`--set NAME=VALUE` of a command; `told`: what it sets there."""
    return typer.Option("--set", metavar="NAME=VALUE", help=told)


class Command(TyperCommand):
    """A command that refuses an option given twice, unless it repeats: the first value would be lost in silence."""

    def parse_args(self, context: Any, words: list[str]) -> list[str]:
        """Read the words; typer.BadParameter: an option stands in them twice."""
        *_, given = self.make_parser(context).parse_args(args=list(words))
        for option, times in Counter(given).items():
            if isinstance(option, TyperOption) and times > 1 and not (option.multiple or option.is_flag):
                raise typer.BadParameter(f"given {times} times; it takes one value.", param=option)
        return super().parse_args(context, words)


class App(typer.Typer):
    """A group whose commands are `Command`s."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """As of Typer."""
        return super().command(name, **{"cls": Command, **options})


class Commands(TyperGroup):
    """The commands; what is said of a value that cannot be is free of the words of pydantic."""

    def invoke(self, context: Any) -> Any:
        """Run the command that the words name."""
        try:
            return super().invoke(context)
        except typer.BadParameter as error:
            told = error.message.removeprefix("Value error, ").partition(", unable to parse")[0]
            error.message = told.replace("Input should", "it should")
            raise


def bare_flags(command: Any, context: typer.Context) -> None:
    """Take `<bool>` from the help of all flags of a command and of those in it: they take no value."""
    for option in command.get_params(context):
        if isinstance(option, TyperOption) and option.is_flag:
            option.metavar = ""
    for inner in command.commands.values() if isinstance(command, TyperGroup) else ():
        bare_flags(inner, context)


class Finished(SystemExit):
    """Our own exit, told apart from a usage error of the argument parser."""


def named(words: str | None) -> list[str] | None:
    """The names in `words`, which has commas between them; None where there is none."""
    return [name.strip() for name in (words or "").split(",") if name.strip()] or None


def guard(work: Callable[[], None]) -> None:
    """Run `work`; every failure becomes one message and its documented exit code."""
    try:
        work()
    except ExpungeError as error:
        fail(error.what, error.where, error.fix, error.exit_code)
    except KeyboardInterrupt:
        fail("Interrupted.", "", "Finished work is kept: run the same command again to go on.", INTERRUPTED)
    except OSError as error:
        if error.errno in (28, 122):
            fail(
                "The disk is full.",
                str(error.filename or ""),
                "Free space, then run the same command again.",
                RESOURCES,
            )
        place = str(error.filename or "")
        fail(f"A file cannot be used: {unreadable(error)}.", place, "Check the path and its permissions.", USAGE)
    except Exception as error:
        if out_of_memory(error):
            fail("Memory ran out.", "", "Use a smaller batch or model.", RESOURCES)
        _internal(error)


def _internal(error: Exception) -> NoReturn:
    """A fault of ours: one line, and the trace for the bug report behind `--debug`."""
    if "--debug" in sys.argv:
        raise error
    fail(f"{type(error).__name__}: {error}", "inside expunge", "Run again with --debug and report the trace.", INTERNAL)
