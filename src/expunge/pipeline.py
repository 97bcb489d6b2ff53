"""The stages of a run, each a function from a folder to the next thing in it; the command line calls only these.

The page is rendered by matplotlib, which is imported where it is needed: a training run does not wait for it.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from expunge.assemble import Parts, assemble
from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import kind_of, make_attack, settings_of
from expunge.audit.attribution import Attribution, attributions
from expunge.audit.influence import rho
from expunge.audit.verdict import at_or_below
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.twins import scored_twins
from expunge.errors import InputError, VerdictBelow, nearest
from expunge.folder import RunFolder, read_json
from expunge.measure import Measured, encoder_of, measure, score_forget
from expunge.models.architecture import FAMILIES
from expunge.models.checkpoint import atomic_write_text, folder_hashes, save_pretrained_atomic
from expunge.models.load import load_model
from expunge.models.memory import peak_bytes
from expunge.models.scores import score_items
from expunge.models.storage import weights_hash
from expunge.models.tensors import save_tensors
from expunge.progress import Named, Progress, Silent
from expunge.recipe import Recipe
from expunge.report.record import Record
from expunge.request import Request
from expunge.source import Source, prepare
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult
from expunge.unlearning.loop import unlearn as unlearn_model
from expunge.unlearning.methods import Method, build_method, split_settings
from expunge.unlearning.parts import build, field_names
from expunge.unlearning.processes import join_processes, main_process_first

log = logging.getLogger(__name__)

TOP_LEVEL = ("seed", "dtype", "device", "revision")


def sort_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bare `--set` pairs of `expunge unlearn` as the recipe's parts: the loop's arguments, the method's, its own."""
    own = {key: value for key, value in settings.items() if key in TOP_LEVEL}
    loop, method = split_settings({key: value for key, value in settings.items() if key not in TOP_LEVEL})
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
        if not folder.training.is_file():
            unlearn(recipe, told)
        if not join_processes()[0].main:
            continue
        attack(folder.path, progress=told)
        records.append(audit(folder.path, told, baselines))
    return records


def unlearn(recipe: Recipe, progress: Progress | None = None) -> UnlearnResult:
    """Unlearn as the recipe says and leave the model in its folder; an interrupted run of the same recipe resumes.

    Raises:
        InputError: anything in the recipe, its data or its model is wrong, or the folder holds something else.
        NonFiniteLoss: training blew up.
        ResourceError: disk or memory ran out.
    """
    progress = progress or Silent()
    method, arguments = check(recipe)
    start = time.perf_counter()
    with main_process_first():
        source = prepare(recipe, progress)
    loaded = load_model(source.model, dtype=recipe.dtype, revision=recipe.revision, device=recipe.device)
    folder, encoder = RunFolder(Path(recipe.output)), encoder_of(loaded, recipe)
    processes, _ = join_processes()
    if processes.main:
        _begin(folder, recipe, source, dict(loaded.hashes))
    prepared = time.perf_counter()
    try:
        result = unlearn_model(
            loaded.model, encoder, source.request, method, arguments, output=folder.path, progress=progress
        )
    except InputError:
        if processes.main and not (folder.path / "metrics.jsonl").exists():
            shutil.rmtree(folder.path)
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
        "history": [step.to_json() for step in result.history],
        "hashes": folder_hashes(folder.model),
    }
    _write_json(folder.training, training)
    shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
    return result


def attack(
    path: Path,
    names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Run attacks on a finished run, and on its control; finished ones with the same settings are kept.

    Args:
        names: of the attacks; the recipe's where None.
        settings: dotted `attack-name.setting`, or bare for every attack that has it.
    """
    folder = RunFolder(path)
    folder.require_model()
    recipe, request = folder.load_recipe(), folder.load_request()
    chosen = _attacks(recipe, request, names, settings or {})
    source = read_json(folder.source)
    work = partial(_attack_model, recipe=recipe, request=request, chosen=chosen, original=source["model"])
    twins = None if source.get("control") else scored_twins(request)
    results = work(str(folder.model), folder=folder.attacks, progress=progress, probed=True, twins=twins)
    if source.get("control"):
        told = Named(progress or Silent(), "control")
        work(source["control"], folder=folder.control_attacks, like=results, progress=told)
    return list(results.values())


def attack_checkpoint(
    model: str, recipe: Recipe, request: Request, folder: Path, progress: Progress | None = None
) -> dict[str, AttackResult]:
    """The recipe's attacks on another checkpoint or request than those of its run; results are stored in `folder`."""
    chosen = _attacks(recipe, request, None, {})
    return _attack_model(model, recipe=recipe, request=request, chosen=chosen, folder=folder, progress=progress)


def audit(path: Path, progress: Progress | None = None, baselines: dict[str, Measured] | None = None) -> Record:
    """Measure the original and the unlearned model, decide, and write record, report and model card.

    Args:
        baselines: measured originals by what they depend on; filled here, so that several runs can share one.
    """
    folder = RunFolder(path)
    folder.require_model()
    recipe, request = folder.load_recipe(), folder.load_request()
    source, training = read_json(folder.source), read_json(folder.training)
    start = time.perf_counter()
    baselines = baselines if baselines is not None else {}
    key = json.dumps(
        [source["model"], source["hashes"], request.hashes(), recipe.template, recipe.dtype], sort_keys=True
    )
    if key not in baselines:
        baselines[key] = measure(source["model"], recipe, request, progress=progress)
    before = baselines[key]
    after = measure(str(folder.model), recipe, request, before, progress)
    control = score_forget(source["control"], recipe, request) if source["control"] else None
    attacks = [
        (_load_attack(file), _load_attack(folder.control_attacks / file.name) if source["control"] else None)
        for file in sorted(folder.attacks.glob("*.json"))
    ]
    stages = {
        "unlearning": training["stage_seconds"],
        "attacks": sum(result.seconds for result, _ in attacks),
        "audit": time.perf_counter() - start,
    }
    peak = max(training["peak_bytes"], peak_bytes())
    record = assemble(
        Parts(recipe, request, _method(recipe), before, after, attacks, control, training, stages, peak)
    ).canonical()
    from expunge.report.card import render_card
    from expunge.report.html import render

    atomic_write_text(folder.record, record.dumps())
    atomic_write_text(folder.report, render([record]))
    atomic_write_text(folder.model / "README.md", render_card(record))
    return record


def report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Render the page of one or several audited runs from their records alone, and say where it is."""
    if output is None and len(runs) > 1:
        raise InputError("Several runs need a page of their own.", "--output", "Name one, as in --output compare.html.")
    from expunge.report.html import render

    page = output or RunFolder(runs[0]).report
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(page, render([Record.load(run) for run in runs]))
    return page


def verify(path: Path, sample: int = 8) -> list[str]:
    """What was checked and holds: hashes of data, weights and tokenizer, and the scores of a few items.

    Raises:
        InputError: something in the folder is not what the record says.
    """
    from expunge.report.html import render

    folder = RunFolder(path)
    record, request, recipe = Record.load(folder.record), folder.load_request(), folder.load_recipe()
    if record.hashes.data != request.hashes():
        raise InputError("The stored request is not the record's.", str(folder.request), "Audit the run again.")
    stored, found = read_json(folder.training)["hashes"], folder_hashes(folder.model)
    for name, digest in stored.items():
        if name != "README.md" and found.get(name) != digest:
            raise InputError(
                "A file of the model has changed.", str(folder.model / name), "Run `expunge unlearn` again."
            )
    if weights_hash(found) != record.hashes.weights_after:
        raise InputError("The record is of other weights.", str(folder.record), "Audit the run again.")
    lines = ["request: hashes as in the record", f"model: {len(stored)} files as saved"]
    if folder.report.is_file() and folder.report.read_text(encoding="utf-8") != render([record]):
        raise InputError("The page is not the record's.", str(folder.report), "Render it again: `expunge report RUN`.")
    lines.append("report: renders from the record, byte for byte")
    loaded = load_model(folder.model, dtype=recipe.dtype, device=recipe.device)
    known = {item.id: item.after.log_odds for item in record.items if item.split == "forget"}
    examples = random.Random(0).sample(request.forget, min(sample, len(request.forget)))
    for item in score_items(loaded.model, encoder_of(loaded, recipe), examples):
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
    atomic_write_text(folder.recipe, recipe.to_yaml())
    source.request.save(folder.request)
    _write_json(folder.source, {"model": source.model, "control": source.control, "hashes": hashes})


def _method(recipe: Recipe) -> Method:
    return build_method(recipe.method, recipe.transform, recipe.settings)


def _attacks(
    recipe: Recipe, request: Request, names: Sequence[str] | None, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Settings by attack; relearn-related is left out, with a warning, where the recipe alone asks and no data can."""
    chosen = {name: dict(recipe.attacks.get(name, {})) for name in (names or recipe.attacks)}
    for name in [name for name in chosen if kind_of(name) == "relearn-related"]:
        if names is None and not request.attack:
            del chosen[name]
            log.warning("%s is left out: the request has no facts of the same kind about others.", name)
    for key, value in settings.items():
        name, dot, setting = key.rpartition(".")
        if dot and name not in chosen:
            raise InputError(f"No attack {name!r} is run.", f"--set {key}", nearest(name, chosen))
        owners = [name] if dot else [each for each in chosen if setting in settings_of(each)]
        if not owners:
            raise InputError(f"No attack has the setting {key!r}.", f"--set {key}", "Say attack-name.setting=value.")
        for owner in owners:
            chosen[owner][setting] = value
    for name, values in chosen.items():
        make_attack(name, values)
    return chosen


def _attack_model(
    model: str,
    *,
    recipe: Recipe,
    request: Request,
    chosen: Mapping[str, Mapping[str, Any]],
    folder: Path,
    progress: Progress | None,
    original: str | None = None,
    like: Mapping[str, AttackResult] | None = None,
    probed: bool = False,
    twins: Mapping[str, Example] | None = None,
) -> dict[str, AttackResult]:
    """Each attack on the model at `model`, its result stored in `folder`; `like` holds those on the unlearned model,
    which was made from `original`; `twins` are scored beside the items.

    With `probed` the results say what an attack changed inside (rho).
    """
    loaded = load_model(model, dtype=recipe.dtype, device=recipe.device)
    encoder = encoder_of(loaded, recipe)
    probe, before = _probe(loaded.model, encoder, request, wanted=probed)
    results = {}
    for name, settings in chosen.items():
        result, seen = make_attack(name, settings).run(
            loaded.model,
            encoder,
            request,
            progress=progress,
            probe=probe,
            cells=folder / "cells",
            like=like[name] if like else None,
            original=original,
            twins=twins,
        )
        if seen is not None and before is not None:
            result = replace(result, rho=rho(before, seen))
        result = replace(result, name=name)
        _write_json(folder / f"{name}.json", result.to_json())
        results[name] = result
    return results


def _probe(
    model: PreTrainedModel, encoder: Encoder, request: Request, *, wanted: bool
) -> tuple[Callable[[PreTrainedModel], Attribution] | None, Attribution | None]:
    """What looks into an attacked model, and what it saw before the attack; nothing where the family is unknown."""
    if not wanted or model.config.model_type not in FAMILIES:
        return None, None
    examples = request.forget[:64]

    def look(attacked: PreTrainedModel) -> Attribution:
        return attributions(attacked, encoder, examples)

    return look, look(model)


def _load_attack(path: Path) -> AttackResult:
    try:
        return AttackResult.from_json(read_json(path))
    except ValueError as error:
        raise InputError("A stored attack is damaged.", str(path), "Run `expunge attack` again.") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
