"""An audit of a model that was made elsewhere: whether the checkpoints fit together, and the folder of the audit.

Every checkpoint is loaded once, and every text of the request tokenised with each tokenizer, before anything is
written. The folder is then like that of a run, but for the model, which stays where it is: it can be attacked again,
audited again and verified.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from expunge import pipeline
from expunge.attacking import choose
from expunge.audit.lm_eval import require
from expunge.data.collate import Encoder
from expunge.data.distractors import require_options
from expunge.data.forms import Template
from expunge.errors import InputError
from expunge.folder import RunFolder, read_json, write_json
from expunge.measure import encoder_of, put_to, require_measurable
from expunge.models.checkpoint import atomic_write_text
from expunge.models.load import load_model
from expunge.progress import Progress, Silent
from expunge.recipe import TOP_LEVEL, Comparison, called
from expunge.report.record import Record
from expunge.request import Request
from expunge.source import from_files

log = logging.getLogger(__name__)

NO_TRAINING: dict[str, Any] = {
    "steps": 0,
    "stop_reason": "",
    "seconds": 0.0,
    "peak_bytes": 0,
    "stage_seconds": 0.0,
    "arguments": {},
    "history": [],
}
"""What is known of how a model came about that was made elsewhere."""


@dataclass(frozen=True)
class Outline:
    """What two checkpoints must share.

    Args:
        path: as given.
        family: the config's model type.
        shapes: of all parameters by name.
        encoder: of its tokenizer.
        hashes: of its files.
    """

    path: str
    family: str
    shapes: Mapping[str, tuple[int, ...]]
    encoder: Encoder
    hashes: dict[str, str]


def compare(
    comparison: Comparison,
    names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    lm_eval: Sequence[str] = (),
) -> Record:
    """The audit's record: both models measured, the attacks of `names` made, the verdict given.

    Interrupted, it goes on when called again; with other attacks, these join the ones already made.

    Args:
        names: of attacks and suites; the suite `standard` where None.
        settings: of the attacks, as in `pipeline.attack`.
        lm_eval: as in `pipeline.audit`.

    Raises:
        InputError: the data are wrong, a checkpoint cannot be read, they do not fit together, or the folder holds
            something else; in all these cases nothing was written.
    """
    names, progress = names or ["standard"], progress or Silent()
    choose(comparison, names, settings)
    require(lm_eval)
    request = from_files(comparison.data, comparison.template)
    fresh = not Path(comparison.output).exists()
    folder = begin(comparison, request, progress)
    try:
        pipeline.attack(folder.path, names, settings, progress)
    except InputError:
        if fresh and not any(folder.attacks.glob("*.json")):
            shutil.rmtree(folder.path)
        raise
    return pipeline.audit(folder.path, progress, lm_eval=lm_eval)


def plan_of(
    model: str,
    base: str | None,
    forget: str,
    retain: str | None = None,
    *,
    attack: str | None = None,
    test: Mapping[str, str] | None = None,
    control: str | None = None,
    template: Template = "plain",
    output: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Comparison, dict[str, Any]]:
    """The comparison that some words ask for, and those of the `settings` that are the attacks' own.

    Args:
        output: the folder of the audit; runs/audit-NAME, with the name of the model, where None.
        settings: of `Comparison` (dtype, matmul_precision, device, revision), or of the attacks.

    Raises:
        InputError: a setting has the wrong type or value.
    """
    own = {key: value for key, value in (settings or {}).items() if key not in TOP_LEVEL}
    name = re.sub(r"[^\w.-]+", "-", called(model))
    tree = {
        "model": model,
        "base": base,
        "data": {"forget": forget, "retain": retain, "attack": attack, "test": dict(test or {})},
        "control": control,
        "template": template,
        "output": str(output or Path("runs") / f"audit-{name}"),
        **{key: value for key, value in (settings or {}).items() if key in TOP_LEVEL},
    }
    return Comparison.of(tree, "command line"), own


def begin(comparison: Comparison, request: Request, progress: Progress) -> RunFolder:
    """The folder of the audit, made if it is not there; errors as in `compare`."""
    folder = RunFolder(Path(comparison.output))
    if folder.occupied and not folder.comparison.is_file():
        raise folder.refusal("only the same audit goes on")
    require_options(request.forget)
    places = [comparison.model, *filter(None, [comparison.base, comparison.control])]
    progress.start("checking the models", len(places))
    outlines = {}
    for place in dict.fromkeys(places):
        outlines[place] = outline(place, comparison)
        progress.advance("checking the models")
    progress.finish("checking the models")
    model = outlines[comparison.model]
    require_measurable(model.encoder, request)
    for place in places[1:]:
        require_alike(model, outlines[place], request)
    hashes = {place: each.hashes for place, each in outlines.items()}
    source = {
        "model": comparison.base,
        "control": comparison.control,
        "hashes": hashes.get(comparison.base or "", {}),
        "control_hashes": hashes.get(comparison.control or "", {}),
    }
    training = {**NO_TRAINING, "hashes": model.hashes}
    if folder.training.is_file():
        _require_same(folder, comparison, request, source, training)
        return folder
    atomic_write_text(folder.comparison, comparison.to_yaml())
    request.save(folder.request)
    write_json(folder.source, {**source, "begun_in": str(Path.cwd())})
    write_json(folder.training, training)
    return folder


def outline(place: str, comparison: Comparison) -> Outline:
    """What must fit of the checkpoint at `place`; InputError where it cannot be read."""
    revision = comparison.revision if place == comparison.base else None
    loaded = load_model(place, dtype=comparison.dtype, revision=revision, device=comparison.device)
    shapes = {name: tuple(value.shape) for name, value in loaded.model.named_parameters(remove_duplicate=False)}
    family = str(loaded.model.config.model_type)
    return Outline(place, family, shapes, encoder_of(loaded, comparison), dict(loaded.hashes))


def require_alike(model: Outline, other: Outline, request: Request) -> None:
    """InputError where two checkpoints have other parameters or tokenise a text of the request otherwise.

    Biases that only one of them has are let pass: there are methods that add them.
    """
    where, fix = f"{model.path} and {other.path}", "Audit a model against the checkpoint that it was made from."
    if model.family != other.family:
        raise InputError(f"The models do not fit: {model.family} against {other.family}.", where, fix)
    for name in sorted(model.shapes.keys() | other.shapes.keys()):
        one, two = model.shapes.get(name), other.shapes.get(name)
        if one != two and not (name.endswith(".bias") and None in (one, two)):
            what = f"The models do not fit: {name} is {_size(one)} against {_size(two)}."
            raise InputError(what, where, fix)
    texts = (put_to(each.encoder, request) for each in (model, other))
    for (text, mine), (_, theirs) in zip(*texts, strict=True):
        if mine != theirs:
            place = next(i for i, (a, b) in enumerate(zip_longest(mine, theirs)) if a != b)
            raise InputError(
                f"The tokenizers differ: {_words(model, mine, place)} against {_words(other, theirs, place)}.",
                f"{where}, in {text[-80:]!r}",
                "Save the original's tokenizer with both models.",
            )
    if model.encoder.tokenizer.get_vocab() != other.encoder.tokenizer.get_vocab():
        log.warning("The vocabularies of %s differ, but not in any text of the request.", where)


def _words(model: Outline, ids: Sequence[int], place: int) -> str:
    """The tokens around the first difference."""
    shown = list(ids[max(0, place - 1) : place + 3])
    return f"{model.encoder.tokenizer.convert_ids_to_tokens(shown)} {shown}"


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))


def _require_same(
    folder: RunFolder,
    comparison: Comparison,
    request: Request,
    source: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    """InputError unless the folder's audit is of the same models, data and ways of asking."""
    begun = Comparison.load(folder.comparison)
    whence = {name: value for name, value in read_json(folder.source).items() if name != "begun_in"}
    stored = folder.load_request().hashes(), whence, read_json(folder.training)
    asked = request.hashes(), json.loads(json.dumps(source)), json.loads(json.dumps(training))
    how = ("template", "numbers", "model")
    if stored != asked or any(getattr(begun, name) != getattr(comparison, name) for name in how):
        raise folder.refusal("only the same audit, of the same models with the same data, goes on")
