"""Where a run starts: the model, the control that never knew, and the request, made out of a recipe."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from expunge.data.benchmarks import BENCHMARKS, Benchmark
from expunge.data.benchmarks.streams import STREAMS
from expunge.data.benchmarks.world_facts import Known
from expunge.data.collate import Encoder
from expunge.data.distractors import with_options
from expunge.data.example import Example, shared
from expunge.data.forms import QUESTIONS, Template
from expunge.data.sources import read_examples, read_texts
from expunge.errors import InputError, nearest
from expunge.models.architecture import row_limit
from expunge.models.load import load_model
from expunge.models.smollm import cache_folder, fetch_smollm2
from expunge.models.teaching import Lessons, teach_smollm2
from expunge.progress import Progress, Silent
from expunge.recipe import SMOLLM2, TRAINED, Data, Recipe
from expunge.request import Request, had_to_go, overlap

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A recipe's starting point: checkpoint folders (or Hub ids) and the request."""

    model: str
    control: str | None
    request: Request


def prepare(recipe: Recipe, progress: Progress | None = None) -> Source:
    """Fetch or train what the recipe starts from and build its request.

    Raises:
        InputError: an unknown benchmark, unreadable data, `trained` without a benchmark that trains.
    """
    progress = progress or Silent()
    if recipe.model == TRAINED:
        return _trained(recipe, progress)
    model = fetched(recipe.model, progress)
    return Source(model, recipe.control, _request(recipe, model))


def fetched(model: str, progress: Progress) -> str:
    """The folder or Hub id of a pretrained model as a recipe names it, the demo's fetched if it is not here."""
    return str(fetch_smollm2(progress=progress)) if model == SMOLLM2 else model


def _trained(recipe: Recipe, progress: Progress) -> Source:
    """A model that knows the facts to forget because it was trained or taught here, and its gold control."""
    benchmark = chosen(recipe.data, BENCHMARKS) if recipe.data.benchmark else None
    if benchmark is None or not (benchmark.train or benchmark.lessons):
        raise InputError(
            "`model: trained` needs a benchmark that trains its own model.", "model", "Use `data: {benchmark: people}`."
        )
    request = built(benchmark, recipe.data, known=None)
    model, gold = (trained_here(benchmark, request, recipe, progress, with_forget=each) for each in (True, False))
    return Source(model, recipe.control or gold, request)


def trained_here(
    benchmark: Benchmark[Any], request: Request, recipe: Recipe, progress: Progress, *, with_forget: bool
) -> str:
    """The folder of a model that is trained or taught here, once for all runs that depend on the same."""
    depends_on, make = _training(benchmark, request, recipe.data.seed, with_forget)
    depends = [depends_on, recipe.matmul_precision]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / benchmark.name / key / ("trained-on-all" if with_forget else "gold")
    if not (folder / "config.json").is_file():
        make(output=folder, progress=progress)
    return str(folder)


def _training(
    benchmark: Benchmark[Any], request: Request, seed: int, with_forget: bool
) -> tuple[object, Callable[..., object]]:
    """What a model trained or taught here depends on, and what makes it."""
    if benchmark.lessons:
        taught = benchmark.lessons(request, with_forget)
        texts = [[example.prompt, example.answer] for example in taught]
        manner = Lessons(learning_rate=benchmark.teaching_rate)
        return [repr(manner), texts], partial(teach_smollm2, taught, manner)
    assert benchmark.train is not None
    return [request.hashes(), seed], partial(benchmark.train, request, with_forget=with_forget, seed=seed)


def chosen(data: Data, registry: Mapping[str, Benchmark[T]]) -> Benchmark[T]:
    """The benchmark or stream that the data name, with its folder if and only if it needs one, and its own settings."""
    assert data.benchmark is not None
    if data.benchmark not in registry:
        known = {**BENCHMARKS, **STREAMS}
        if data.benchmark in known:
            raise InputError(f"{data.benchmark!r} cannot be used here.", "data.benchmark", nearest("", registry))
        raise InputError(f"Unknown benchmark {data.benchmark!r}.", "data.benchmark", nearest(data.benchmark, known))
    found = registry[data.benchmark]
    if found.from_folder != (data.folder is not None):
        what = "needs the folder of its files" if found.from_folder else "has its data in the package"
        raise InputError(
            f"The benchmark {found.name!r} {what}.", "data.folder", "Give it." if found.from_folder else "Leave it out."
        )
    _require_settings(found, data)
    return found


def _request(recipe: Recipe, model: str) -> Request:
    """The request from files, or from a benchmark among facts that the model knows."""
    data = recipe.data
    if data.benchmark is None:
        return from_files(data, recipe.template)
    benchmark = chosen(data, BENCHMARKS)
    return built(benchmark, data, known_by(model, recipe))


def known_by(model: str, recipe: Recipe) -> Known:
    """Says which examples the checkpoint answers right."""
    from expunge.models.scores import score_items

    loaded = load_model(model, dtype=recipe.dtype, revision=recipe.revision, device=recipe.device)
    encoder = Encoder(loaded.tokenizer, recipe.template, row_limit(loaded.model))

    def answers_right(examples: Sequence[Example]) -> Sequence[bool]:
        return [score.correct for score in score_items(loaded.model, encoder, examples)]

    return answers_right


def built(benchmark: Benchmark[T], data: Data, known: Known | None) -> T:
    """The request, or the stream of requests; `known` limits it to facts that a model knows."""
    place = {"folder": data.folder} if data.folder else {}
    return benchmark.build(known=known, seed=data.seed, **place, **data.settings)


def _require_settings(benchmark: Benchmark[T], data: Data) -> None:
    """InputError for a setting that the benchmark does not have, or that is no number of items."""
    known = {name for name in inspect.signature(benchmark.build).parameters if name not in ("known", "seed", "folder")}
    for name, value in data.settings.items():
        where = f"data.settings.{name}"
        if name not in known:
            raise InputError(f"The benchmark {data.benchmark!r} has no setting {name!r}.", where, nearest(name, known))
        if name.startswith("n_") and (type(value) is not int or value < 0):
            raise InputError(f"{value!r} is no number of items.", where, f"As in {name}: 24.")


def from_files(data: Data, template: Template) -> Request:
    """The request that the files of `data` spell out."""
    assert data.forget is not None
    return read_request(
        data.forget,
        data.retain,
        attack=data.attack,
        hold=data.hold,
        test=data.test,
        text=data.text,
        seed=data.seed,
        template=template,
    )


def read_request(
    forget: str,
    retain: str | None = None,
    *,
    attack: str | None = None,
    hold: str | None = None,
    test: Mapping[str, str] | None = None,
    text: str | None = None,
    seed: int = 0,
    template: Template = "plain",
    kept: Sequence[Example] = (),
) -> Request:
    """The request in some files, read by `read_examples`; questions without options get some, drawn by `seed`.

    `kept` are further facts that stay, whose answers may be such options.
    """
    read = partial(read_examples, question=QUESTIONS[template])
    goes, others = (_owned(read(path), path) if path else () for path in (forget, attack))  # repeats here are refused
    stays, earlier = (_distinct(read(path), path) if path else () for path in (retain, hold))
    groups = {name: _distinct(read(path), path) for name, path in (test or {}).items()}
    known = [*stays, *kept, *(e for name, group in groups.items() if not had_to_go(name) for e in group)]
    filled = partial(with_options, stays=known, goes=[*goes, *others, *earlier], seed=seed)
    _require_apart(forget, goes, {"retain": stays, "attack": others})
    bare = sum(not example.options for example in goes)
    request = Request(
        forget=filled(goes),
        retain=filled(stays),
        test={name: filled(group) for name, group in groups.items()},
        attack=others,
        hold=filled(earlier),
        text=read_texts(text) if text else (),
        name=Path(forget).stem,
    )
    if drawn := bare - sum(not example.options for example in request.forget):
        log.warning(
            "%s: %d of %d questions bring no wrong options; these were drawn from the answers to other questions. "
            'Give "options" for sharper scores.',
            forget,
            drawn,
            len(goes),
        )
    return request


def _require_apart(forget: str, goes: Sequence[Example], sets: Mapping[str, Sequence[Example]]) -> None:
    """InputError where a fact that must go stands in one of `sets` too, be it in other case or with other spaces."""
    for name, examples in sets.items():
        if both := shared(examples, goes):
            raise overlap("forget", name, both, f"{forget}: ")


def _owned(examples: tuple[Example, ...], path: str) -> tuple[Example, ...]:
    """`examples`; InputError where two of one id are not the same."""
    owners: dict[str, Example] = {}
    for example in examples:
        owner = owners.setdefault(example.id, example)
        if (owner.prompt, owner.answer) != (example.prompt, example.answer):
            raise InputError(
                f"Two different records have the id {example.id!r}.",
                f"{path}, {example.quoted}",
                "Give each its own, or none.",
            )
    return examples


def _distinct(examples: Sequence[Example], path: str) -> tuple[Example, ...]:
    """`examples` without repeats, of which a warning tells; InputError where two of one id are not the same."""
    kept: dict[tuple[str, str], Example] = {}
    for example in examples:
        kept.setdefault((example.prompt, example.answer), example)
    _owned(tuple(kept.values()), path)
    if repeats := len(examples) - len(kept):
        log.warning("%s: %d of %d records repeat others, and are left out.", path, repeats, len(examples))
    return tuple(kept.values())
