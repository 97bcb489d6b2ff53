"""Attacks on a checkpoint on disk, as a plan, a suite or a command line chooses them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from expunge.attacks.base import Attack, AttackResult
from expunge.attacks.catalogue import make_attack, settings_of
from expunge.attacks.cells import Cells, fingerprint, open_cells
from expunge.attacks.suites import Chosen, expand
from expunge.audit.attribution import Attribution, attributions
from expunge.audit.influence import rho
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError, nearest
from expunge.folder import read_json, require_unchanged, write_json
from expunge.measure import encoder_of
from expunge.models.architecture import FAMILIES
from expunge.models.load import load_model, model_folder
from expunge.models.storage import model_hashes
from expunge.progress import Named, Progress, Silent
from expunge.recipe import Plan
from expunge.request import Request

log = logging.getLogger(__name__)


def choose(
    plan: Plan, names: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Chosen]:
    """What is to be run, in order: the attacks and suites of `names`, or those of the plan, which are all optional.

    Args:
        settings: dotted `attack-name.setting`, or bare for every attack that has it.

    Raises:
        InputError: an unknown attack or suite, or a setting that no attack, or not the named one, has.
    """
    chosen = (
        {name: Chosen(dict(own), optional=True) for name, own in plan.attacks.items()}
        if names is None
        else expand(names, plan.attacks)
    )
    for key, value in (settings or {}).items():
        name, dot, setting = key.rpartition(".")
        if dot and name not in chosen:
            raise InputError(f"No attack {name!r} is run.", f"--set {key}", nearest(name, chosen))
        owners = [name] if dot else [each for each in chosen if setting in settings_of(each)]
        if not owners:
            raise InputError(f"No attack has the setting {key!r}.", f"--set {key}", "Say attack-name.setting=value.")
        for owner in owners:
            chosen[owner].settings[setting] = value
    for name, each in chosen.items():
        make_attack(name, each.settings)
    return chosen


def beside(chosen: Mapping[str, Chosen], folder: Path) -> dict[str, Chosen]:
    """`chosen`, with those told apart by a number (NAME@2, NAME@3, ...) under whose name `folder` holds a result of
    other settings: what was found once is not lost to a weaker try."""

    def free(name: str, wanted: Mapping[str, Any]) -> bool:
        file = folder / f"{name}.json"
        try:
            return not file.is_file() or make_attack(name, stored_attack(file).settings).settings() == wanted
        except InputError:
            return True  # a damaged one is made again, and so is one of settings that there are no more

    found: dict[str, Chosen] = {}
    for name, each in chosen.items():
        wanted = make_attack(name, each.settings).settings()
        numbered = (f"{name}{'-' if '@' in name else '@'}{number}" for number in count(2))
        others = (other for other in numbered if other not in chosen)
        found[next(other for other in chain([name], others) if other not in found and free(other, wanted))] = each
    return found


@dataclass(frozen=True)
class Original:
    """The model before unlearning, for attacks that need it.

    Args:
        folder: a local one, also where the model is on the Hub.
        hashes: of its files.
    """

    folder: str
    hashes: Mapping[str, str]

    @classmethod
    def find(cls, model: str | None, revision: str | None, known: Mapping[str, str]) -> Original | None:
        """That of a folder or Hub id; None, with a warning, where it is no longer there: what needs it refuses then.

        Raises:
            InputError: its files are not those of the hashes that are `known`.
        """
        if model is None:
            return None
        try:
            folder = model_folder(model, revision)
        except InputError as error:
            log.warning("The model before unlearning is not at hand: %s", error)
            return None
        found = model_hashes(folder)
        require_unchanged(model, found, known)
        return cls(str(folder), found)


def attack_model(
    model: str,
    *,
    plan: Plan,
    request: Request,
    chosen: Mapping[str, Chosen],
    folder: Path,
    progress: Progress | None,
    original: Callable[[], Original | None] = lambda: None,
    like: Mapping[str, AttackResult] | None = None,
    probed: bool = False,
    twins: Mapping[str, Example] | None = None,
    known: Mapping[str, str] | None = None,
) -> dict[str, AttackResult]:
    """Each attack on the model at `model`, its result stored in `folder`; `like` holds those on the unlearned model,
    which was made from `original`, asked for by attacks that need it; `twins` are scored beside the items.

    With `probed` the results say what an attack changed inside (rho). An optional attack that refuses the request or
    the model is left out with a warning, unless all do. Files of other hashes than are `known` are an InputError.
    """
    loaded = load_model(model, dtype=plan.dtype, device=plan.device)
    require_unchanged(model, loaded.hashes, known or {})
    encoder = encoder_of(loaded, plan)
    asked = [request.hashes(), {item: twin.to_json() for item, twin in (twins or {}).items()}]
    on = [dict(loaded.hashes), encoder.describe(), asked, probed]
    finished = Finished(open_cells(folder / "cells"), on)
    look = cache(partial(_probe, loaded.model, encoder, request, wanted=probed))
    results: dict[str, AttackResult] = {}
    refusal: InputError | None = None
    for name, each in chosen.items():
        if like is not None and name not in like:
            continue
        attack, split = make_attack(name, each.settings), like[name] if like else None
        source = original() if attack.uses_original else None
        key, label = finished.key(attack, split, source), name.partition("@")[2]
        result = finished.read(key)
        try:
            if result is None:
                probe, before = look()
                result, seen = attack.run(
                    loaded.model,
                    encoder,
                    request,
                    progress=Named(progress or Silent(), label) if label else progress,
                    probe=probe,
                    cells=finished.cells,
                    like=split,
                    original=source.folder if source else None,
                    twins=twins,
                )
                if seen is not None and before is not None:
                    result = replace(result, rho=rho(before, seen))
                finished.cells[key] = result.to_json()
        except InputError as error:
            if not each.optional or like is not None:
                raise
            log.warning("%s is left out: %s", name, error.what)
            refusal = error
            continue
        result = replace(result, name=name)
        write_json(folder / f"{name}.json", result.to_json())
        results[name] = result
    if refusal is not None and not results:
        raise refusal
    return results


@dataclass(frozen=True)
class Finished:
    """Attacks that were made before, each by all that its result depends on: these are not made again.

    Args:
        cells: where they are kept, beside the cells of attacks that are under way.
        on: model, tokenizer, questions, and whether rho was measured.
    """

    cells: Cells
    on: Sequence[object]

    def read(self, key: str) -> AttackResult | None:
        """The result; None where there is none, or it is damaged."""
        stored = self.cells.get(key)
        try:
            return None if stored is None else AttackResult.from_json(stored)
        except ValueError:
            log.warning("A stored result (%s) is damaged, so it is attacked again.", key)
            return None

    def key(self, attack: Attack, like: AttackResult | None, original: Original | None) -> str:
        """The name of what `attack` gives."""
        split = None if like is None else [like.trained_ids, like.held_out_ids]
        settings = attack.settings()
        named = [Path(value) for value in settings.values() if isinstance(value, str)]
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in named if path.is_file()]
        before = dict(original.hashes) if original else None
        return f"{attack.name}-{fingerprint([attack.name, settings, files, split, before, self.on])}"


def stored_attack(path: Path) -> AttackResult:
    """The result in the file `path`; InputError where it is missing or damaged."""
    try:
        return AttackResult.from_json(read_json(path))
    except ValueError as error:
        raise InputError("A stored attack is damaged.", str(path), "Run `expunge attack` again.") from error


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
