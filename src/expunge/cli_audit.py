"""`expunge audit ...`: of a run, or of any model that somebody made with any tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from expunge.catalogue import NAMED_ATTACKS
from expunge.console import Bars, guard, named, out, set_option
from expunge.errors import SETTINGS_PAGE, InputError
from expunge.unlearning.interrupts import whole_imports

if TYPE_CHECKING:
    from expunge.folder import RunFolder
    from expunge.report.record import Record

FailOn = Literal["broken", "not-forgotten", "hidden", "inconclusive"]
LEVEL = f"Leave with code 10 if the verdict is this or worse; from the worst: {', '.join(get_args(FailOn))}."


def audit(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Folder of a run; or a model's folder or Hub id.")],
    base: Annotated[
        str | None, typer.Option(help="The model before unlearning: MODEL is audited, whatever made it.")
    ] = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="MODEL is audited though its original is lost.")] = False,
    forget: Annotated[
        str | None, typer.Option(help="What MODEL must not know: JSONL, JSON, parquet or a `datasets` id.")
    ] = None,
    retain: Annotated[str | None, typer.Option(help="What it must still know.")] = None,
    attack: Annotated[
        str | None, typer.Option(help="Facts of the same kind about others, for relearn-related.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE", help="More questions to score.")] = None,
    control: Annotated[str | None, typer.Option(help="A model that never knew the facts.")] = None,
    attacks: Annotated[
        str | None,
        typer.Option(help=f"{NAMED_ATTACKS}; the suite standard where absent."),
    ] = None,
    template: Annotated[Literal["plain", "chat"], typer.Option(help="How prompts are written.")] = "plain",
    settings: Annotated[
        list[str] | None,
        set_option(
            "Set dtype, device, revision (of BASE), matmul_precision, or a value of one attack or, bare, of all "
            f"that have it; repeat. Names: {SETTINGS_PAGE}.",
        ),
    ] = None,
    lm_eval: Annotated[
        list[str] | None, typer.Option("--lm-eval", metavar="TASK", help="A task file of lm-eval; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of MODEL's audit; runs/audit-NAME where absent.")
    ] = None,
    fail_on: Annotated[FailOn | None, typer.Option(metavar="LEVEL", help=LEVEL, show_default=False)] = None,
) -> None:
    """Measure before and after, decide, and write record.json and report.html: of a run, or of any model.

    **Examples:** `expunge audit runs/npo --fail-on hidden`

    `expunge audit ./model --base org/original --forget forget.jsonl --retain retain.jsonl -o runs/audit`

    A run must have been attacked before; a model is attacked here. Interrupted, the same command goes on.
    """

    def work() -> None:
        with whole_imports():
            from expunge import pipeline
            from expunge.folder import RunFolder

        data = {"--forget": forget, "--retain": retain, "--attack": attack, "--test": test, "--control": control}
        ways = {"--attacks": attacks, "--template": template != "plain", "--set": settings, "--output": output}
        given = {"--base": base, "--no-base": no_base, **data, **ways}
        run = RunFolder(Path(target))
        _require_sense(run, [name for name, value in given.items() if value])
        with Bars().shown() as progress:
            if run.exists:
                record, folder = pipeline.audit(run.path, progress, lm_eval=lm_eval or ()), run.path
            else:
                from expunge.comparison import compare, plan_of
                from expunge.settings import parse_assignments, parse_files

                plan, own = plan_of(
                    target,
                    base,
                    str(forget),
                    retain,
                    attack=attack,
                    test=parse_files(test or [], "--test"),
                    control=control,
                    template=template,
                    output=output,
                    settings=parse_assignments(settings or []),
                )
                record, folder = compare(plan, named(attacks), own, progress, lm_eval or ()), Path(plan.output)
        print_verdict(record, folder)
        pipeline.gate(record, fail_on)

    guard(work)


def _require_sense(run: RunFolder, asked: Sequence[str]) -> None:
    """InputError unless the options are those of a run, which has all it needs, or of a model, which brings nothing."""
    if run.exists and asked:
        raise InputError(
            f"This is the folder of a run, which has its own model and data: {asked[0]} is for other models.",
            str(run.path),
            "Leave it out, or name the model itself and another --output.",
        )
    if run.exists:
        return
    if "--base" in asked and "--no-base" in asked:
        raise InputError("There is a --base, and there is none.", "--no-base", "Give one of the two.")
    if not {"--base", "--no-base"} & set(asked):
        raise InputError(
            "This is not a finished run, and a model is audited against its original.",
            str(run.path),
            "Give --base BASE, or --no-base where the original is lost, and --forget FILE.",
        )
    if "--forget" not in asked:
        raise InputError("What must the model not know?", "--forget", "Name a file of questions and answers.")


def print_verdict(record: Record, folder: Path) -> None:
    """The verdict, its reasons and the page."""
    out.print(f"[bold]{record.verdict}[/]")
    for reason in record.verdict_details.reasons:
        out.print(f"  - {reason}", markup=False)
    out.print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
