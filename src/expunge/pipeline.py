"""The stages of a run, each a function from a folder to the next thing in it; the command line calls only these.

The page is rendered by matplotlib, which is imported where it is needed: a training run does not wait for it.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from expunge.assemble import Parts, assemble
from expunge.attacking import Original, attack_model, beside, choose, stored_attack
from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import make_attack
from expunge.attacks.trials import Wear
from expunge.audit.lm_eval import linked
from expunge.audit.verdict import at_or_below
from expunge.basis import Basis
from expunge.data.twins import scored_twins
from expunge.errors import InputError, NonFiniteLoss, VerdictBelow
from expunge.folder import RunFolder, Subject, require_files, require_unchanged, write_json
from expunge.measure import Measured, ask_lm_eval, encoder_of, measure, measure_control, require_measurable
from expunge.models.checkpoint import atomic_write_text, folder_hashes, save_pretrained_atomic
from expunge.models.load import load_model, model_folder
from expunge.models.memory import peak_bytes
from expunge.models.precision import matmul_precision
from expunge.models.scores import score_items
from expunge.models.storage import weights_hash
from expunge.models.tensors import save_tensors
from expunge.progress import Named, Progress, Silent
from expunge.recipe import TOP_LEVEL, Comparison, Plan, Recipe, called
from expunge.report.parts import RecipePart
from expunge.report.record import Record
from expunge.request import Request
from expunge.source import Source, from_files, prepare
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult
from expunge.unlearning.loop import unlearn as unlearn_model
from expunge.unlearning.methods import Method, build_method, split_settings
from expunge.unlearning.parts import build, field_names
from expunge.unlearning.processes import Processes, join_processes, main_process_first
from expunge.unlearning.session import FOLDER as CHECKPOINTS

CARD: Final = "README.md"
"""The model card, written anew with each audit."""


def sort_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bare `--set` pairs of `expunge unlearn` as the recipe's parts: the loop's arguments, the method's, its own."""
    top = ("seed", *TOP_LEVEL)
    own = {key: value for key, value in settings.items() if key in top}
    loop, method = split_settings({key: value for key, value in settings.items() if key not in top})
    return {**own, "unlearn": loop, "settings": method}


def check(recipe: Recipe) -> tuple[Method, UnlearnArguments]:
    """The recipe's method and loop; InputError where they or its attacks cannot be, before any work is done."""
    method = _method(recipe)
    arguments = build(UnlearnArguments, {"seed": recipe.seed, **method.loop, **recipe.unlearn}, "unlearn")
    for name, settings in recipe.attacks.items():
        make_attack(name, settings)
    return method, arguments


def continued(recipe: Recipe, removed: Path | None) -> Recipe:
    """The recipe with what earlier requests removed, where its parametrization carries that on."""
    if removed is None or "earlier" not in field_names(type(check(recipe)[0].parametrization)):
        return recipe
    return recipe.model_copy(update={"settings": {**recipe.settings, "parametrization.earlier": str(removed)}})


def run(recipe: Recipe, progress: Progress | None = None) -> Record | None:
    """Everything from one recipe: unlearn, attack, audit. Stages already finished in the output folder are kept.

    Several processes unlearn together; the main one then attacks and audits alone, and the others get None.
    """
    return next(iter(run_all([recipe], progress)), None)


def run_all(
    recipes: Sequence[Recipe], progress: Progress | None = None, baselines: dict[str, Measured] | None = None
) -> list[Record]:
    """The records of several recipes; those of one model and request share the measurement of the original.

    Args:
        baselines: as in `audit`.
    """
    baselines = baselines if baselines is not None else {}
    records = []
    for recipe in recipes:
        folder = RunFolder(Path(recipe.output))
        told = Named(progress or Silent(), folder.path.name)
        require_same(recipe)
        if not folder.training.is_file():
            unlearn(recipe, told)
        if not join_processes()[0].main:
            continue
        attack(folder.path, progress=told)
        records.append(audit(folder.path, told, baselines))
    return records


def require_same(recipe: Recipe) -> None:
    """InputError where the folder holds the finished run of another recipe, of a method that has changed, or of data
    files that have."""
    folder = RunFolder(Path(recipe.output))
    if folder.training.is_file():
        folder.require_same(recipe, _method(recipe).parts)
        if recipe.data.benchmark is None and recipe.data.at_hand:
            folder.require_same_data(from_files(recipe.data, recipe.template))


def unlearn(recipe: Recipe, progress: Progress | None = None) -> UnlearnResult:
    """Unlearn as the recipe says and leave the model in its folder; an interrupted run of the same recipe resumes.

    Raises:
        InputError: anything in the recipe, its data or its model is wrong, or the folder holds something else.
        NonFiniteLoss: training blew up.
        ResourceError: disk or memory ran out.
    """
    folder, (processes, _) = RunFolder(Path(recipe.output)), join_processes()
    with folder.working() if processes.main else nullcontext():
        return _unlearn(recipe, folder, processes, progress or Silent())


def _unlearn(recipe: Recipe, folder: RunFolder, processes: Processes, progress: Progress) -> UnlearnResult:
    method, arguments = check(recipe)
    with matmul_precision(recipe.matmul_precision, recipe.device):
        with main_process_first():
            source = prepare(recipe, progress)
            if source.control:
                model_folder(source.control)  # the attacks load it first: late to say that it is not there
        # A benchmark that trains its own model does so above: that is no price of unlearning.
        start = time.perf_counter()
        loaded = load_model(source.model, dtype=recipe.dtype, revision=recipe.revision, device=recipe.device)
        encoder = encoder_of(loaded, recipe)
        require_measurable(encoder, source.request)
        if processes.main:
            _begin(folder, recipe, source, dict(loaded.hashes))
        prepared = time.perf_counter()
        try:
            result = unlearn_model(
                loaded.model, encoder, source.request, method, arguments, output=folder.path, progress=progress
            )
        except (InputError, NonFiniteLoss):
            if processes.main and not any((folder.path / CHECKPOINTS).glob("*")):
                shutil.rmtree(folder.path)  # nothing to go on from
            raise
    if not processes.main:
        return result
    learnt = time.perf_counter()
    save_pretrained_atomic(loaded.model, loaded.tokenizer, folder.model)
    if result.carried:
        save_tensors(folder.removed, result.carried)
    training = {
        "steps": result.steps,
        "stop_reason": str(result.stop_reason.value),
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        # The loop's own clock holds the earlier parts of a resumed run; ours does not.
        "stage_seconds": prepared - start + result.seconds + time.perf_counter() - learnt,
        "arguments": asdict(arguments),
        "parts": method.parts,
        "history": [step.to_json() for step in result.history],
        "hashes": folder_hashes(folder.model),
    }
    write_json(folder.training, training)
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
    return result


def attack(
    path: Path,
    names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Run attacks on a finished run, on its control and, where they take knowledge from every model, on the original;
    finished ones are kept, and those of other settings stand beside them under a name of their own.

    Args:
        names: of attacks and of suites; the recipe's where None.
        settings: dotted `attack-name.setting`, or bare for every attack that has it.
    """
    folder = RunFolder(path)
    subject = folder.load_subject()
    plan, request = subject.plan, subject.request
    original = cache(partial(Original.find, subject.original, plan.revision, subject.hashes))
    chosen = beside(choose(plan, names, settings), folder.attacks)
    work = partial(attack_model, plan=plan, request=request, chosen=chosen, original=original)
    twins = None if subject.control else scored_twins(request)
    with folder.working(), matmul_precision(plan.matmul_precision, plan.device):
        known = subject.training["hashes"]
        results = work(subject.model, folder=folder.attacks, progress=progress, probed=True, twins=twins, known=known)
        if subject.control:
            told = Named(progress or Silent(), "control")
            work(subject.control, folder=folder.control_attacks, like=results, progress=told)
        made = {name: make_attack(name, chosen[name].settings) for name in results}
        worn = {name: results[name] for name, each in made.items() if isinstance(each, Wear) and each.original}
        if worn and (before := original()):
            told = Named(progress or Silent(), "original")
            work(before.folder, folder=folder.original_attacks, like=worn, progress=told)
    return list(results.values())


def attack_checkpoint(
    model: str, recipe: Recipe, request: Request, folder: Path, progress: Progress | None = None
) -> dict[str, AttackResult]:
    """The recipe's attacks on another checkpoint or request than those of its run; results are stored in `folder`."""
    twins = scored_twins(request)
    with matmul_precision(recipe.matmul_precision, recipe.device):
        return attack_model(
            model, plan=recipe, request=request, chosen=choose(recipe), folder=folder, progress=progress, twins=twins
        )


def audit(
    path: Path,
    progress: Progress | None = None,
    baselines: dict[str, Measured] | None = None,
    lm_eval: Sequence[str] = (),
) -> Record:
    """Measure the original and the unlearned model, decide, and write record, report and model card.

    Args:
        baselines: measured originals by what they depend on; filled here, so that several runs can share one.
        lm_eval: task files of lm-eval; without any, earlier answers in the folder are linked.
    """
    folder = RunFolder(path)
    subject = folder.load_subject()
    start = time.perf_counter()
    plan, training = subject.plan, subject.training
    attacks = [
        (stored_attack(file), stored_attack(folder.control_attacks / file.name) if subject.control else None)
        for file in folder.attacked(controlled=bool(subject.control))
    ]
    worn = {file.stem: stored_attack(file) for file in sorted(folder.original_attacks.glob("*.json"))}
    with folder.working(), matmul_precision(plan.matmul_precision, plan.device):
        asked = ask_lm_eval(subject.model, plan, lm_eval, folder.path)
        basis, after = _measured(subject, progress, baselines if baselines is not None else {})
        control = measure_control(subject.control, plan, subject.request) if subject.control else None
    stages = {
        **({"unlearning": training["stage_seconds"]} if training["stage_seconds"] else {}),
        "attacks": sum(result.seconds for result, _ in attacks),
        "audit": time.perf_counter() - start,
    }
    record = assemble(
        Parts(
            plan=plan,
            request=subject.request,
            recipe=_how(plan, training),
            basis=basis,
            after=after,
            attacks=attacks,
            control=control,
            training=training,
            stages=stages,
            seeds={"data": plan.data.seed, **({"unlearning": plan.seed} if isinstance(plan, Recipe) else {})},
            peak_bytes=max(training["peak_bytes"], peak_bytes()),
            lm_eval=asked,
            worn=worn,
        )
    ).canonical()
    from expunge.report.card import render_card
    from expunge.report.html import render

    atomic_write_text(folder.record, record.dumps())
    atomic_write_text(folder.report, render([record]))
    if folder.model.is_dir():
        atomic_write_text(folder.model / CARD, render_card(record))
    return record


def _measured(subject: Subject, progress: Progress | None, baselines: dict[str, Measured]) -> tuple[Basis, Measured]:
    """What the model is compared with, and the model, measured one after the other."""
    plan, request, known = subject.plan, subject.request, subject.training["hashes"]
    if subject.original is None:
        after = _same(measure(subject.model, plan, request, progress=progress), subject.model, known)
        return Basis.assumed(after), after
    key = json.dumps([subject.original, subject.hashes, request.hashes(), plan.template, plan.numbers], sort_keys=True)
    if key not in baselines:
        baselines[key] = measure(subject.original, plan, request, progress=progress)
    before = _same(baselines[key], subject.original, subject.hashes)
    return Basis(before), _same(measure(subject.model, plan, request, before, progress), subject.model, known)


def _same(measured: Measured, place: str, known: Mapping[str, str]) -> Measured:
    """`measured`; InputError where it is not the model that is `known`."""
    require_unchanged(place, measured.hashes, known)
    return measured


def report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Render the page of one or several audited runs from their records alone, and say where it is."""
    if output is None and (len(runs) > 1 or runs[0].is_file()):
        what = "Several runs" if len(runs) > 1 else "Records without their runs"
        raise InputError(f"{what} need a page of their own.", "--output", "Name one, as in --output compare.html.")
    from expunge.report.html import render

    records, page = [_audited(run) for run in runs], output or RunFolder(runs[0]).report
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(page, render(records))
    return page


def _audited(run: Path) -> Record:
    """The record of the run in a folder, or the one in a file; InputError where there is none."""
    if not run.exists() or (run.is_dir() and not RunFolder(run).record.exists()):
        raise InputError("There is no audited run here.", str(run), "Name the folder of one: `expunge audit RUN`.")
    return Record.load(run)


def verify(path: Path, sample: int = 8) -> list[str]:
    """What was checked and holds: hashes of data, weights and tokenizer, and the scores of a few items.

    Raises:
        InputError: something in the folder is not what the record says.
    """
    from expunge.report.html import render

    folder = RunFolder(path)
    record, subject = _audited(path), folder.load_subject()
    request, place = subject.request, model_folder(subject.model)
    if record.hashes.data != request.hashes():
        raise InputError("The stored request is not the record's.", str(folder.request), "Audit the run again.")
    stored, found = subject.training["hashes"], folder_hashes(place)
    require_files(str(place), found, {name: digest for name, digest in stored.items() if name != CARD})
    if weights_hash(found) != record.hashes.weights_after:
        raise InputError("The record is of other weights.", str(folder.record), "Audit the run again.")
    lines = ["request: hashes as in the record", f"model: {len(stored)} files as saved"]
    if folder.report.is_file() and folder.report.read_text(encoding="utf-8") != render([record]):
        raise InputError("The page is not the record's.", str(folder.report), "Render it again: `expunge report RUN`.")
    lines.append("report: renders from the record, byte for byte")
    if link := record.metrics and record.metrics.lm_eval:
        kept = linked(folder.path)
        if kept is None or kept.sha256 != link.sha256:
            raise InputError("The answers of lm-eval are not the record's.", link.file, "Audit the run again.")
        lines.append(f"lm-eval: {len(link.tasks)} task files as in the record")
    plan = subject.plan
    loaded = load_model(subject.model, dtype=plan.dtype, device=plan.device)
    known = {item.id: item.after.log_odds for item in record.items if item.split == "forget"}
    examples = random.Random(0).sample(request.forget, min(sample, len(request.forget)))
    with matmul_precision(plan.matmul_precision, plan.device):
        scored = score_items(loaded.model, encoder_of(loaded, plan), examples)
    for item in scored:
        told = known[item.id]
        if told is not None and abs(item.log_odds - told) > 1e-2:
            raise InputError(
                f"An item scores {item.log_odds:.4f}, the record says {told:.4f}.", item.id, "Audit the run again."
            )
    return [*lines, f"scores: {len(examples)} items as in the record"]


def gate(record: Record, level: str | None) -> None:
    """VerdictBelow (exit code 10) where the verdict is `level` or worse."""
    if level is not None and at_or_below(record.verdict, level):
        raise VerdictBelow(f"The verdict is {record.verdict}.", f"--fail-on {level}", "See the report for the reasons.")


def _begin(folder: RunFolder, recipe: Recipe, source: Source, hashes: dict[str, str]) -> None:
    """Make the folder, with what the later stages need to know."""
    folder.create(recipe)
    if any((folder.path / CHECKPOINTS).glob("*")):
        folder.require_same_data(source.request)
        require_unchanged(source.model, hashes, folder.load_source()["hashes"])
    atomic_write_text(folder.recipe, recipe.to_yaml())
    source.request.save(folder.request)
    whence = {"model": source.model, "control": source.control, "hashes": hashes, "begun_in": str(Path.cwd())}
    write_json(folder.source, whence)


def _how(plan: Plan, training: dict[str, Any]) -> RecipePart:
    """How the model was made, as far as it is known."""
    if isinstance(plan, Comparison):
        elsewhere = "not known: the model was made elsewhere"
        return RecipePart(method=called(plan.model), objective=elsewhere, parametrization="")
    assert isinstance(plan, Recipe)
    parts = training.get("parts") or _method(plan).parts
    return RecipePart(
        method=plan.method,
        **parts,
        benchmark=plan.data.benchmark or "",
        arguments=json.loads(json.dumps({**training["arguments"], **plan.settings})),
    )


def _method(recipe: Recipe) -> Method:
    return build_method(recipe.method, recipe.transform, recipe.settings)
