"""Requests carried out one after another, each from the model that the one before it left.

For request t the retain side is its own and that of the requests before it, without any fact that had to go or that an
attack of any request teaches; what they made go is held (`Request.hold`), and a method begins with what the last one of
its kind left: a projection with the rows that were removed, also where other methods came between; adapters only where
none did, as they are fused into the weights of the start and would undo it. Afterwards all requests so far are scored
and attacked again. The ledger is written last: an interrupted run goes on when called again, and until then the last
good model is the one that the ledger ends with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from expunge import pipeline
from expunge.attacking import stored_attack
from expunge.attacks.relearn import RelearnRelated
from expunge.continual.intake import joint_retain, own_ids, without
from expunge.continual.ledger import ADAPTERS, Entry, Ledger, Standing, numbered
from expunge.continual.standing import known, standing
from expunge.data.distractors import require_options
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.folder import RunFolder
from expunge.measure import Measured, score_set
from expunge.models.load import model_folder
from expunge.models.scores import summarise
from expunge.models.storage import atomic_write_text, beside_files, model_hashes, weight_files
from expunge.progress import Named, Progress, Silent
from expunge.recipe import Recipe
from expunge.request import EARLIER, Request
from expunge.source import fetched, from_files
from expunge.unlearning.parametrizations.fused import FusedLoRA
from expunge.unlearning.parametrizations.projection import Projection

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requests:
    """Carries out the requests of a ledger.

    Args:
        ledger: what was asked and done.
        output: folder of the runs, one below it for each request.
        shared: recipe keys of all runs: method, settings, attacks, ...
        progress: told of every step.
    """

    ledger: Ledger
    output: Path
    shared: Mapping[str, Any]
    progress: Progress | None = None

    def again(self, model: str, name: str) -> Entry:
        """Carry the last request out once more, from the model that it began with; its new entry, which takes the place
        of the other.

        Raises:
            InputError: it was not carried out, or not as the last, or `model` is not what it began with and that is not
                where it was left.
        """
        done, before = self.ledger.fulfilled(), self.ledger.before(name)
        if name not in done:
            raise InputError(
                f"The request {name!r} was not carried out yet.", str(self.ledger.file), "Leave --again out."
            )
        given = fetched(model, self.progress or Silent())
        left = [str(RunFolder(Path(entry.run)).model) for entry in before.values()][-1:]
        begun = done[name].weights_before
        start = next((place for place in (given, *left) if _weights_of(place, self._revision) == begun), None)
        if start is None:
            raise InputError(
                f"This is not the model that request {name!r} began with.",
                given,
                f"Give that one{''.join(f', which was left in {place}' for place in left)}.",
            )
        if start != given:
            _log.warning("Going on from %s, which request %r began with.", start, name)
        return self._fulfil(name, start)

    def fulfil(self, model: str, names: Sequence[str] = ()) -> list[Entry]:
        """Carry out `names`, or all that wait, on the checkpoint `model`; their entries.

        A model that an earlier request began with stands for the one that the ledger ends with, and of `names` those
        that were carried out already are left out: so the call that was cut goes on.

        Raises:
            InputError: none of `names` waits, or the model is neither the one that the ledger ends with nor one that
                led to it, or an earlier request left something that the method would undo.
        """
        names = tuple(dict.fromkeys(names))
        waiting, done = self.ledger.pending(), self.ledger.fulfilled()
        wrong = [name for name in names if name not in waiting and name not in done]
        if names and not set(names) & set(waiting):
            wrong = list(names)
        if wrong:
            raise InputError(
                f"The request {wrong[0]!r} does not wait.", str(self.ledger.file), "See `expunge request list`."
            )
        given = fetched(model, self.progress or Silent())
        model = going_on_from(self.ledger, given, self._revision)
        entries: list[Entry] = []
        for name in names or waiting:
            if name in done:
                _log.warning("Request %r was carried out already, and is left out.", name)
                continue
            entries.append(self._fulfil(name, model))
            model = str(RunFolder(Path(entries[-1].run)).model)
        return entries

    @property
    def _revision(self) -> str | None:
        return self.shared.get("revision")

    def _fulfil(self, name: str, model: str) -> Entry:
        request, time = self.ledger.request(name), self.ledger.times(name) + 1
        recipe = self._recipe(name, request, model)
        self._check(recipe)
        measured: dict[str, Measured] = {}
        (record,) = pipeline.run_all([recipe], self.progress, measured)
        (original,) = measured.values()
        folder, knew = RunFolder(Path(recipe.output)), known(original.snapshot.forget, original.snapshot.twins)
        results = [stored_attack(file) for file in folder.attacked(controlled=False)]
        own = standing(record.scores.forget.after, results, knew)
        standings = {name: own, **self._earlier(name, recipe, folder)}
        left = folder.removed if folder.removed.is_file() else None
        after = model_hashes(folder.model)
        self.ledger.fulfil(
            name,
            {
                "method": recipe.method,
                "run": str(folder.path),
                "model_before": weight_files(folder.load_source()["hashes"]),
                "model_after": weight_files(after),
                "verdict": record.verdict,
                "before": summarise(original.snapshot.forget).log_odds,
                "known": knew,
                "carries": _kind(recipe) if left else "",
                "beside": beside_files(after),
                "standings": standings,
            },
            left,
            time,
        )
        return self.ledger.fulfilled()[name]

    @staticmethod
    def _check(recipe: Recipe) -> None:
        """InputError where facts to forget have no wrong options, or a cut run was begun with other data."""
        request, folder = from_files(recipe.data, recipe.template), RunFolder(Path(recipe.output))
        require_options(request.forget)
        if folder.exists:
            folder.require_same_data(
                request, "Remove this folder, if another request came in since: this one then begins anew."
            )

    def _earlier(self, name: str, recipe: Recipe, folder: RunFolder) -> dict[str, Standing]:
        """How the requests before `name` stand in the model that its run left."""
        found, done = {}, self.ledger.before(name)
        gone = [example for other in (*done, name) for example in self.ledger.request(other).forget]
        for other, entry in done.items():
            request = self.ledger.request(other)
            request = replace(request, attack=tuple(without(request.attack, gone)))
            told = Named(self.progress or Silent(), f"{name}: {other}")
            now = score_set(str(folder.model), recipe, request.forget)
            possible = recipe if request.attack else _without_related(recipe)
            place = folder.path / "earlier" / other
            results = pipeline.attack_checkpoint(str(folder.model), possible, request, place, progress=told)
            found[other] = standing(summarise(now), results.values(), entry.knew(item.id for item in request.forget))
        return found

    def _recipe(self, name: str, request: Request, model: str) -> Recipe:
        """The recipe of the run: its data files are those of the ledger, the joint retain side, and what is held.

        Facts that earlier requests forgot are left out of its attack set.
        """
        stored, done, run = self.ledger.folder / "requests", self.ledger.before(name), self._run(name)
        earlier = [self.ledger.request(other) for other in done]
        retain = joint_retain((*earlier, request), map(self.ledger.request, self.ledger.standing()))
        if not retain:
            raise InputError("Nothing is left to retain.", f"request {name}", "First carry out one with a retain set.")
        test = {group: str(stored / name / "test" / f"{group}.jsonl") for group in request.test}
        test |= {f"{EARLIER}{other}": str(stored / other / "forget.jsonl") for other in done}
        data: dict[str, Any] = {"forget": str(stored / name / "forget.jsonl"), "test": test}
        data["retain"] = str(self._written(run, "retain", retain))
        hold = own_ids(example for other in earlier for example in other.forget)
        if hold:
            data["hold"] = str(self._written(run, "hold", hold))
        taught = without(request.attack, hold)
        if len(taught) < len(request.attack):
            data |= {"attack": str(self._written(run, "attack", taught))} if taught else {}
        elif taught:
            data["attack"] = str(stored / name / "attack.jsonl")
        template = self.ledger.template
        keys = {**self.shared, "model": model, "data": data, "template": template, "output": str(run.path)}
        return self._continued(Recipe.of(keys, f"request {name}"), list(done.values()))

    def _continued(self, recipe: Recipe, done: Sequence[Entry]) -> Recipe:
        """The recipe with what the last method of its kind left; InputError where adapters would undo a request."""
        kind = _kind(recipe)
        if (carried := self.ledger.carried(kind, done)) is None:
            return recipe
        left, file = carried
        if kind == ADAPTERS and done[-1].weights_after != left.weights_after:
            since = next(entry for entry in done[done.index(left) :] if entry.weights_after != left.weights_after)
            raise InputError(
                f"Request {since.request!r}, by {since.method}, came after the adapters of request {left.request!r}, "
                "and fusing more of these would undo it.",
                f"method {recipe.method}",
                "Take a method without fused adapters for this request and for those after it.",
            )
        return pipeline.continued(recipe, file)

    def _written(self, run: RunFolder, part: str, examples: Sequence[Example]) -> Path:
        """A file of examples beside the runs; that of a run whose training is done stays as it is."""
        path = run.path.with_name(f"{run.path.name}.{part}.jsonl")
        if not (run.training.is_file() and path.is_file()):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, "".join(f"{json.dumps(e.to_row(), sort_keys=True)}\n" for e in examples))
        return path

    def _run(self, name: str) -> RunFolder:
        """Where the request is carried out; again, in a folder of its own."""
        return RunFolder(self.output / numbered(name, self.ledger.times(name) + 1))


def verify(ledger: Ledger, model: str) -> list[str]:
    """What was checked and holds: the chain of hashes, the stored requests, that each request began with the model that
    the one before it left, and that `model` is what the ledger ends with.

    Raises:
        InputError: something does not hold.
    """
    entries, done = ledger.entries(), list(ledger.fulfilled().values())
    for name in ledger.received():
        ledger.request(name)
    if not done:
        raise InputError("No request was carried out yet.", str(ledger.file), "Run `expunge request apply` first.")
    for before, after in pairwise(done):
        if after.weights_before != before.weights_after:
            raise InputError(
                f"Request {after.request!r} did not begin with the model that request {before.request!r} left, so what "
                "was done for that one need not be in this model.",
                str(ledger.file),
                f"Take {before.request!r} in again in a new ledger that begins with {done[-1].run}/model.",
            )
    last = done[-1]
    if not Path(model).is_dir():
        raise InputError("There is no model in this place.", model, f"The last one was left in {last.run}.")
    found = model_hashes(Path(model))
    if weight_files(found) != last.weights_after:
        raise _another_model(last, model)
    if last.beside and (
        other := sorted(name for name, _ in beside_files(last.beside).items() ^ beside_files(found).items())
    ):
        raise InputError(
            f"The weights are those that request {last.request!r} left, but {other[0]} is not.",
            model,
            f"Restore it from {last.run}/model.",
        )
    what = "weights, config and tokenizer" if last.beside else "weights"
    return [
        f"ledger: {len(entries)} entries, each with the hash of the one before it; the last is {entries[-1].digest()}",
        f"requests: the data of {len(ledger.received())} are those received",
        f"models: each of {len(done)} requests began with the one that the request before it left",
        f"model: {what} are those that request {last.request!r} left on {last.time}",
    ]


def going_on_from(ledger: Ledger, model: str, revision: str | None = None) -> str:
    """The checkpoint to begin with where `model` is given: itself if the ledger ends with it or has no runs, or, where
    an earlier request began with it, the one that the ledger ends with.

    Raises:
        InputError: it is another model, or the one that the ledger ends with is not where it was left.
    """
    done = list(ledger.fulfilled().values())
    if not done:
        return model
    last, given = done[-1], _weights(model_folder(model, revision))
    if given == last.weights_after:
        return model
    if given not in [entry.weights_before for entry in done]:
        raise _another_model(last, model)
    left = RunFolder(Path(last.run)).model
    if not left.is_dir() or _weights(left) != last.weights_after:
        raise InputError(
            "The model that the ledger ends with is missing or was changed.",
            str(left),
            f"Give the folder where you keep what request {last.request!r} left.",
        )
    _log.warning("Going on from %s, which request %r left; the chain began with %s.", left, last.request, model)
    return str(left)


def _another_model(last: Entry, model: str) -> InputError:
    return InputError(
        "This is not the model that the ledger ends with.",
        model,
        f"Request {last.request!r} left it in {last.run}/model.",
    )


def _weights(folder: Path) -> dict[str, str]:
    return weight_files(model_hashes(folder))


def _weights_of(place: str, revision: str | None) -> dict[str, str] | None:
    """Of the checkpoint in a folder or on the Hub; None where there is none."""
    try:
        return _weights(model_folder(place, revision))
    except InputError:
        return None


def _without_related(recipe: Recipe) -> Recipe:
    """The recipe for a request that has no facts about others: its training must not have been in vain for that."""
    kept = {name: own for name, own in recipe.attacks.items() if name.partition("@")[0] != RelearnRelated.name}
    return recipe.model_copy(update={"attacks": kept})


def _kind(recipe: Recipe) -> str:
    """Of what its run leaves for later ones: rows of another site, or another parametrization's file, are of no use."""
    parametrization = pipeline.check(recipe)[0].parametrization
    if isinstance(parametrization, FusedLoRA):
        return ADAPTERS
    if isinstance(parametrization, Projection):
        return f"rows at {parametrization.site}"
    return type(parametrization).__name__
