"""The command line: each command reads its words, hands them to the library, and prints a short answer.

Exit codes: 0 done, 1 usage or input, 2 internal, 3 disk or memory, 10 verdict at or below --fail-on, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other; must precede torch

import typer

from expunge import __version__, cli_audit, cli_request
from expunge.catalogue import DEFAULT_ATTACKS, DEFAULT_METHOD, NAMED_ATTACKS
from expunge.cli_audit import LEVEL, FailOn, print_verdict
from expunge.console import App, Bars, Commands, Finished, bare_flags, guard, named, out, set_option, write_any_letters
from expunge.errors import SETTINGS_PAGE, InputError
from expunge.models.memory import keep_freed_memory
from expunge.unlearning.interrupts import whole_imports

app = App(
    name="expunge",
    cls=Commands,
    help="Take knowledge out of a language model, attack the result, and say whether it is erased or only hidden.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_request.app, name="request")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Part = tuple[list[str] | None, list[str] | None]
"""Methods and seeds of a grid that are run; None: all."""

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run.")]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show traces and the log.")] = False,
) -> None:
    """Options that stand before the command."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    if debug:
        logging.getLogger("expunge").setLevel(logging.DEBUG)
    else:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command()
def unlearn(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a causal language model.")],
    forget: Annotated[str, typer.Option(help="What must go: JSONL, JSON, parquet or a `datasets` id.")],
    retain: Annotated[str, typer.Option(help="What must stay.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; made new.")],
    method: Annotated[str, typer.Option(help="See `expunge list methods`.")] = DEFAULT_METHOD,
    transform: Annotated[
        str | None,
        typer.Option(
            help="Gradient transform in the place of the method's own; none for none, sam+relearning for two."
        ),
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Facts of the same kind about others, for relearn-related.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE", help="More questions to score.")] = None,
    control: Annotated[str | None, typer.Option(help="A model that never knew the facts.")] = None,
    template: Annotated[Literal["plain", "chat"], typer.Option(help="How prompts are written.")] = "plain",
    settings: Annotated[
        list[str] | None,
        set_option(
            "Set dtype, device, a value of the loop (learning_rate) or of a part of the method (objective.beta); "
            f"repeat. Names: {SETTINGS_PAGE}.",
        ),
    ] = None,
) -> None:
    """Take the forget set out of a model.

    **Example:** `expunge unlearn --model ./model --forget forget.jsonl --retain retain.jsonl --method npo
    --set learning_rate=1e-5 --set objective.beta=0.1 --output runs/npo`
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline
            from expunge.recipe import Recipe
            from expunge.settings import parse_assignments, parse_files

        tree = {
            "model": model,
            "data": {
                "forget": forget,
                "retain": retain,
                **({"attack": attack} if attack else {}),
                **({"test": parse_files(test, "--test")} if test else {}),
            },
            "method": method,
            "transform": transform,
            "control": control,
            "template": template,
            "output": str(output),
            **pipeline.sort_settings(parse_assignments(settings or [])),
        }
        with Bars().shown() as progress:
            result = pipeline.unlearn(Recipe.of(tree, "command line"), progress=progress)
        out.print(f"Stopped after {result.steps} steps: {result.stop_reason}.", markup=False)
        out.print(f"Next: expunge attack {output}", markup=False, soft_wrap=True)

    guard(work)


@app.command()
def attack(
    run: Run,
    attacks: Annotated[
        str | None,
        typer.Option(
            help=f"{NAMED_ATTACKS}. Where absent, the recipe's; if it names "
            f"none, or there was none: {', '.join(DEFAULT_ATTACKS)}."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        set_option(
            f"Set a value of one attack or, bare, of all that have it; repeat. Names: {SETTINGS_PAGE}.",
        ),
    ] = None,
) -> None:
    """Try to bring the knowledge back. Finished attacks are kept; an interrupted one goes on.

    **Example:** `expunge attack runs/npo --attacks quick,relearn-benign --set relearn-harmful.fraction=0.1`
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline
            from expunge.settings import parse_assignments

        with Bars().shown() as progress:
            results = pipeline.attack(run, named(attacks), parse_assignments(settings or []), progress=progress)
        for result in results:
            best = result.best
            out.print(
                f"{result.name:<18} log-odds {result.start.log_odds:+.2f} -> {best.log_odds:+.2f}, "
                f"accuracy {result.start.accuracy:.2f} -> {best.accuracy:.2f}",
                markup=False,
            )
        out.print(f"Next: expunge audit {run}", markup=False, soft_wrap=True)

    guard(work)


app.command()(cli_audit.audit)


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help=f"A YAML file; its keys: {SETTINGS_PAGE}.", show_default=False)
    ],
    settings: Annotated[
        list[str] | None,
        set_option("Set a key of the recipe, dotted; may be repeated."),
    ] = None,
    methods: Annotated[str | None, typer.Option(metavar="NAMES", help="Of a grid only these, as in a,b.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="SEEDS", help="Of a grid only on these, as in 1,2.")] = None,
    output: Output = None,
    fail_on: Annotated[FailOn | None, typer.Option(metavar="LEVEL", help=LEVEL, show_default=False)] = None,
) -> None:
    """Do it all: unlearn, attack, audit, report, from one recipe.

    **Example:** `expunge run recipes/people.yaml --set method=npo --set unlearn.learning_rate=1e-4 -o runs/npo`

    A recipe with `methods:` and `seeds:` is a grid: every run's record is kept, and a table compares them. Where the
    benchmark is a stream of requests, they are carried out one after another, and everything is scored after each.

    **Example:** `expunge run recipes/world_facts.yaml --methods graddiff,durable --seeds 1,2`
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline
            from expunge.data.benchmarks.streams import STREAMS
            from expunge.recipe import Recipe
            from expunge.settings import assign, parse_assignments, read_yaml

        overrides = parse_assignments(settings or []) | ({"output": str(output)} if output else {})
        tree = assign(read_yaml(recipe), overrides)
        data, part = tree.get("data"), (named(methods), named(seeds))
        if isinstance(data, dict) and str(data.get("benchmark")) in STREAMS:
            if fail_on:
                raise InputError("A stream of requests has no verdict to leave with.", "--fail-on", "Leave it out.")
            _run_courses(tree, str(recipe), part)
            return
        if "methods" in tree:
            _run_grid(tree, str(recipe), part, fail_on)
            return
        if any(part):
            raise InputError("This recipe is no grid: it has no `methods:`.", str(recipe), "Use --set method=NAME.")
        plan = Recipe.of(tree, str(recipe))
        with Bars().shown() as progress:
            record = pipeline.run(plan, progress=progress)
        if record is not None:
            print_verdict(record, Path(plan.output))
            pipeline.gate(record, fail_on)

    guard(work)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="One folder, or several to compare.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; RUN/report.html where absent.")
    ] = None,
) -> None:
    """Render the page again, from the records alone.

    **Example:** `expunge report runs/graddiff runs/ssiuu --output compare.html`
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline

        out.print(str(pipeline.report(runs, output)), markup=False, soft_wrap=True)

    guard(work)


@app.command()
def verify(
    run: Run,
    sample: Annotated[int, typer.Option(help="How many items to score again.", min=0)] = 8,
) -> None:
    """Recompute the hashes of a run and score a sample of its items again.

    **Example:** `expunge verify runs/npo`
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline

        for line in pipeline.verify(run, sample):
            out.print(f"ok  {line}", markup=False, soft_wrap=True)

    guard(work)


@app.command()
def demo(
    tiny: Annotated[bool, typer.Option("--tiny", help="A small model of fictional people, trained here.")] = False,
    output: Output = None,
) -> None:
    """Forget real facts with graddiff and with ssiuu, attack both, and compare them on one page.

    **Example:** `expunge demo --tiny --output runs/tiny`
    """

    def work() -> None:
        with whole_imports():
            from expunge import demo as demonstration

        with Bars().shown() as progress:
            outcome = demonstration.run(tiny=tiny, output=output, progress=progress)
        out.print(demonstration.table(outcome.records))
        out.print(f"{outcome.seconds:.0f} s, {outcome.peak_bytes / 1e9:.1f} GB at most.", markup=False)
        out.print(f"Report: {outcome.report}", markup=False, soft_wrap=True)

    guard(work)


@app.command("list")
def list_(
    kind: Annotated[
        Literal["methods", "attacks", "suites", "benchmarks"], typer.Argument(metavar="KIND", show_default=False)
    ],
) -> None:
    """List what can be named.

    **Example:** `expunge list methods`
    """

    def work() -> None:
        from rich.table import Table

        from expunge import catalogue

        listed = Table.grid(padding=(0, 2))
        listed.add_column(style="bold", no_wrap=True)
        with whole_imports():
            for name, summary in catalogue.describe(kind):
                listed.add_row(name, summary)
        out.print(listed)

    guard(work)


def _run_grid(tree: dict[str, Any], where: str, part: Part, fail_on: FailOn | None) -> None:
    """Run a grid, leave its table and its page in its folder, and print the table; all of what was run so far."""
    from expunge import pipeline
    from expunge.bench.grid import Grid, run_grid, stored
    from expunge.bench.page import write_page
    from expunge.bench.rows import rows

    grid = Grid.of(tree, where)
    place, own = grid.output / "records", grid.part(*part, where)
    with Bars().shown() as progress:
        made = run_grid(own, place, progress)
    records = stored(grid, place)
    title = "log-odds of the right answer; recovery with its 95 % interval over seeds"
    columns = ("method", "attack", "after", "attacked", "recovery", "retain", "held-out")
    _print_table(title, columns, [row.short() for row in rows(records)])
    for file in write_page(grid, records):
        out.print(str(file), markup=False, soft_wrap=True)
    for record in (each for records in made.values() for each in records):
        pipeline.gate(record, fail_on)


def _run_courses(tree: dict[str, Any], where: str, part: Part) -> None:
    """Run a grid of courses, or a single one, leave its table and picture in its folder, and print the table."""
    from expunge.bench.course_page import write_course_page
    from expunge.bench.courses import SHORT, run_courses, short_table
    from expunge.bench.grid import Grid, kept
    from expunge.continual.record import Course

    if "methods" not in tree:
        tree = {**tree, "methods": [tree.get("method", DEFAULT_METHOD)], "seeds": [tree.get("seed", 0)]}
        tree = {key: value for key, value in tree.items() if key not in ("method", "seed")}
    grid = Grid.of(tree, where)
    place = grid.output / "records"
    with Bars().shown() as progress:
        run_courses(grid.part(*part, where), place, progress)
    courses = kept(grid, place, Course.load)
    _print_table(
        "after the last request: log-odds of what is forgotten, accuracy of what stays, R under relearning",
        SHORT,
        short_table(courses),
    )
    for file in write_course_page(grid.output, courses):
        out.print(str(file), markup=False, soft_wrap=True)


def _print_table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table whose first column is text and the others numbers."""
    from rich.table import Table

    shown = Table(title=title)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for line in lines:
        shown.add_row(*line)
    out.print(shown)


def main() -> None:
    """Entry point: usage errors leave with 1, ours with their own code."""
    commands = typer.main.get_command(app)
    bare_flags(commands, typer.Context(commands))
    keep_freed_memory()
    write_any_letters()
    try:
        commands()
    except Finished:
        raise
    except SystemExit as leaving:
        raise SystemExit(1 if leaving.code == 2 else leaving.code) from None


__all__ = ["app", "main"]
