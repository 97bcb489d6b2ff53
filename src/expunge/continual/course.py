"""A stream of requests on one model: each carried out where the last one ended, everything scored after each.

What `expunge request apply` does to the requests of a ledger, done to those of a benchmark to measure a method: without
a page and an attack for each, but with the control of every prefix, and attacked at the end. A course that is cut goes
on after its last finished request; within a request, from the newest checkpoint.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from expunge import __version__
from expunge.attacks.catalogue import make_attack
from expunge.attacks.relearn import RelearnHarmful
from expunge.continual.record import HELD_OUT, RETAIN, Course, Moment, Relearnt, SetScore, Setting, twinned
from expunge.continual.relearning import SETTINGS, Asked, deleted, outcome, relearn, rest_of
from expunge.data.benchmarks.streams import STREAMS
from expunge.data.example import Example
from expunge.data.sources import passages
from expunge.data.twins import stream_twins
from expunge.errors import InputError
from expunge.folder import read_json, write_json
from expunge.measure import encoder_of
from expunge.models.answers import text_statistics
from expunge.models.checkpoint import atomic_write_text, save_pretrained_atomic
from expunge.models.load import LoadedModel, load_model, model_folder
from expunge.models.precision import matmul_precision
from expunge.models.projections import load_rows
from expunge.models.scores import score_items
from expunge.models.storage import model_hashes, weights_hash
from expunge.models.tensors import save_tensors
from expunge.pipeline import check, continued
from expunge.progress import Named, Progress, Silent
from expunge.recipe import TRAINED, Recipe
from expunge.source import built, chosen, fetched, known_by, trained_here
from expunge.stream import Stream
from expunge.unlearning.loop import unlearn
from expunge.unlearning.parametrizations.projection import Projection


@dataclass(frozen=True)
class Begin:
    """Where a course starts: the checkpoint, the stream, and a gold control for every prefix (or none)."""

    model: str
    stream: Stream
    gold: tuple[str, ...] = ()

    @cached_property
    def twins(self) -> dict[str, Example]:
        """The made-up twins that are scored beside their items: none where a gold control says more."""
        return {} if self.gold else stream_twins(self.stream)


@dataclass(frozen=True)
class Place:
    """Files of a course in its folder: of each request, counted from 1, its moment, its model, what was removed."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """What is carried out here."""
        return self.folder / "recipe.yaml"

    @property
    def made(self) -> Path:
        """What the recipe makes of the method and of the loop."""
        return self.folder / "method.json"

    @property
    def record(self) -> Path:
        """The record."""
        return self.folder / "course.json"

    def moment(self, number: int) -> Path:
        """How everything stood after request `number`; 0 is the start."""
        return self.folder / f"{number:02}.json"

    def model(self, number: int) -> Path:
        """The checkpoint that request `number` left."""
        return self.folder / f"{number:02}" / "model"

    def removed(self, number: int) -> Path:
        """What the next request must know of those before it."""
        return self.folder / f"{number:02}" / "removed.safetensors"


def run_course(recipe: Recipe, progress: Progress | None = None) -> Course:
    """The record of `recipe`, whose benchmark is a stream; a finished one is read from its folder.

    The recipe's only attack, if it has one, gives the settings of relearning on the first request.

    Raises:
        InputError: the benchmark is no stream, the folder holds another course, or as in `pipeline.unlearn`.
    """
    place, told = Place(Path(recipe.output)), progress or Silent()
    _attacks(recipe)
    require_same(recipe)
    if place.record.is_file():
        return Course.load(place.record)
    with matmul_precision(recipe.matmul_precision, recipe.device):
        course = _course(recipe, place, told)
    atomic_write_text(place.record, course.dumps())
    return course


def _course(recipe: Recipe, place: Place, told: Progress) -> Course:
    """What happens from the first request to the relearning at the end."""
    begin = begin_course(recipe, told)
    stream = begin.stream
    place.folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(place.recipe, recipe.to_yaml())
    made = _made(recipe)
    write_json(place.made, made)
    if not place.moment(0).is_file():
        _write(place.moment(0), _moment(_load(begin.model, recipe), begin, recipe, ""))
    for number, name in enumerate(stream.ids, start=1):
        if not place.moment(number).is_file():
            _carry_out(number, name, begin, recipe, place, Named(told, name))
    last = len(stream.ids)
    end = _load(str(place.model(last)), recipe)
    moments = [Moment.model_validate_json(place.moment(i).read_text("utf-8")) for i in range(last + 1)]
    return Course(
        stream=str(recipe.data.benchmark),
        method=recipe.method,
        recipe=recipe.model_dump(mode="json", exclude={"output": True, "data": {"folder"}}),
        **made,
        seed=recipe.seed,
        model=Path(begin.model).name,
        gold=tuple(_moment(_load(path, recipe), begin, recipe, f"gold {n}") for n, path in enumerate(begin.gold, 1)),
        start=moments[0],
        after=tuple(moments[1:]),
        relearnt=tuple(_relearnt(end, moments[0], place, begin, recipe, told)),
        hashes={
            **stream.hashes(),
            "start": weights_hash(model_hashes(model_folder(begin.model))),
            "end": weights_hash(end.hashes),
        },
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "expunge": __version__,
        },
    )


def begin_course(recipe: Recipe, progress: Progress) -> Begin:
    """The stream and its models, fetched or trained; InputError where the recipe's benchmark is no stream."""
    data = recipe.data
    if data.benchmark is None:
        raise InputError("A course needs a stream of requests.", "data.benchmark", f"Known: {', '.join(STREAMS)}.")
    source = chosen(data, STREAMS)
    if recipe.model != TRAINED:
        model = fetched(recipe.model, progress)
        return Begin(model, built(source, data, known_by(model, recipe)))
    if not (source.train or source.lessons):
        raise InputError("`model: trained` needs a stream that trains its own model.", "model", source.name)
    stream = built(source, data, known=None)
    last = len(stream.ids)
    whole = trained_here(source, stream.so_far(last), recipe, progress, with_forget=True)
    prefixes = () if source.lessons else range(1, last + 1)
    gold = (trained_here(source, stream.so_far(n), recipe, progress, with_forget=False) for n in prefixes)
    return Begin(whole, stream, tuple(gold))


def require_same(recipe: Recipe) -> None:
    """InputError where the recipe's folder holds another course, or one of a method that has changed since."""
    place = Place(Path(recipe.output))
    if place.recipe.is_file() and place.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
        raise InputError("This folder holds another course.", str(place.folder), "Give another --output.")
    if place.made.is_file() and read_json(place.made) != _made(recipe):
        raise InputError("The method has changed since this course began.", str(place.folder), "Give another --output.")


def _made(recipe: Recipe) -> dict[str, Any]:
    """What the recipe makes of the method and of the loop, as the record tells it."""
    method, arguments = check(recipe)
    made: dict[str, Any] = json.loads(json.dumps({"parts": method.parts, "arguments": asdict(arguments)}))
    return made


def _carry_out(number: int, name: str, begin: Begin, recipe: Recipe, place: Place, progress: Progress) -> None:
    """Request `number` on the model that the one before it left; its moment is written last."""
    before = place.model(number - 1) if number > 1 else Path(begin.model)
    removed = place.removed(number - 1)
    method, arguments = check(continued(recipe, removed if removed.is_file() else None))
    loaded = _load(str(before), recipe)
    encoder, folder = encoder_of(loaded, recipe), place.model(number).parent
    request = begin.stream.request(number - 1)
    result = unlearn(loaded.model, encoder, request, method, arguments, output=folder, progress=progress)
    save_pretrained_atomic(loaded.model, loaded.tokenizer, place.model(number))
    if result.carried:
        save_tensors(place.removed(number), result.carried)
    moment = _moment(loaded, begin, recipe, name).model_copy(
        update={
            "steps": result.steps,
            "seconds": result.seconds,
            "peak_bytes": result.peak_bytes,
            "trained": result.trained,
        }
    )
    _write(place.moment(number), moment)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if number > 1:
        shutil.rmtree(place.model(number - 1), ignore_errors=True)


def _load(model: str, recipe: Recipe) -> LoadedModel:
    return load_model(model, dtype=recipe.dtype, device=recipe.device)


def _moment(loaded: LoadedModel, begin: Begin, recipe: Recipe, name: str) -> Moment:
    """How everything stands in this model."""
    encoder, stream = encoder_of(loaded, recipe), begin.stream
    sets: dict[str, Sequence[Example]] = {each: stream.scored_on(each) for each in stream.ids}
    sets |= {RETAIN: stream.retain, HELD_OUT: stream.held_out}
    text = text_statistics(loaded.model, encoder, stream.text or passages())
    items = {each: score_items(loaded.model, encoder, examples) for each, examples in sets.items()}
    beside = score_items(loaded.model, encoder, tuple(begin.twins.values()))
    return Moment(
        request=name,
        sets={each: SetScore.of(own) for each, own in items.items()},
        perplexity=min(text.perplexity, sys.float_info.max),
        twins=twinned(
            {each: {item.id: item.log_odds for item in items[each]} for each in stream.ids},
            {item: score.log_odds for item, score in zip(begin.twins, beside, strict=True)},
        ),
    )


def _relearnt(
    end: LoadedModel, start: Moment, place: Place, begin: Begin, recipe: Recipe, progress: Progress
) -> Iterator[Relearnt]:
    """Relearning of the first request in the last model, in every setting that its projections allow."""
    encoder, cells = encoder_of(end, recipe), place.folder / "cells"
    for attack in _attacks(recipe):
        asked = Asked.of(begin.stream, attack, begin.twins)
        gold = _load(begin.gold[-1], recipe).model if begin.gold else None
        rest = rest_of(asked, encoder, _load(begin.model, recipe).model, gold)
        told, kept = Named(progress, "control"), cells / "control"
        control = relearn(gold, encoder, asked, attack, "merged", {}, told, kept) if gold else ()
        for setting, removed in _settings(recipe, place.removed(len(begin.stream.ids))).items():
            told, kept = Named(progress, setting), cells / setting
            found = relearn(end.model, encoder, asked, attack, setting, removed, told, kept)
            yield outcome(setting, asked, found, rest, control)
        if _rows_alone(recipe):
            yield deleted(start, asked.first, rest)


def _attacks(recipe: Recipe) -> list[RelearnHarmful]:
    """The recipe's; InputError for any but relearn-harmful on all weights."""
    attacks = []
    for name, settings in recipe.attacks.items():
        attack = make_attack(name, settings)
        if not isinstance(attack, RelearnHarmful):
            raise InputError("A course ends with relearn-harmful alone.", f"attacks: {name}", "Leave the others out.")
        if attack.lora_rank:
            raise InputError("A course is relearnt with all weights.", f"attacks.{name}.lora_rank", "Leave it out.")
        attacks.append(attack)
    return attacks


def _settings(recipe: Recipe, removed: Path) -> dict[Setting, dict[int, Tensor]]:
    """How the attacker meets the model, and the rows that are enforced then; those at whole blocks are in the model."""
    parametrization = check(recipe)[0].parametrization
    if not isinstance(parametrization, Projection) or not removed.is_file():
        return {"merged": {}}
    if parametrization.site == "block":
        return {"frozen": {}}
    return dict.fromkeys(SETTINGS, load_rows(removed))


def _rows_alone(recipe: Recipe) -> bool:
    """Whether nothing is trained but the rows of projections, so that the start is left where these are taken away."""
    parametrization = check(recipe)[0].parametrization
    return isinstance(parametrization, Projection) and parametrization.train != "weights"


def _write(path: Path, moment: Moment) -> None:
    atomic_write_text(path, moment.model_dump_json(indent=1) + "\n")
