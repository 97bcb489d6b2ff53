"""Requests carried out one after another, each from the model that the one before it left.

For request t the retain side is its own and that of the requests before it, without any fact that had to go; what they
made go is held (`Request.hold`), and a projection begins with the rows that they removed. Afterwards all requests so
far are scored and attacked again. The ledger is written last: an interrupted run goes on when called again, and until
then the last good model is the one that the ledger ends with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import pipeline
from expunge.attacking import stored_attack
from expunge.continual.ledger import Entry, Ledger, Standing
from expunge.continual.standing import Known, standing
from expunge.data.example import Example
from expunge.data.twins import scored_twins
from expunge.errors import InputError
from expunge.folder import RunFolder, read_json
from expunge.measure import score_sets
from expunge.models.scores import summarise
from expunge.models.storage import atomic_write_text, folder_hashes, weight_files
from expunge.progress import Named, Progress, Silent
from expunge.recipe import Recipe
from expunge.request import Request


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

    def fulfil(self, model: str, names: Sequence[str] = ()) -> list[Entry]:
        """Carry out `names`, or all that wait, on the checkpoint `model`; their entries.

        Raises:
            InputError: a name is not waiting, or the model is not the one that the ledger ends with.
        """
        waiting = self.ledger.pending()
        if wrong := [name for name in names if name not in waiting]:
            raise InputError(
                f"The request {wrong[0]!r} does not wait.", str(self.ledger.file), "See `expunge request list`."
            )
        require_last_model(self.ledger, model)
        done = []
        for name in names or waiting:
            self._fulfil(name, model)
            done.append(self.ledger.fulfilled()[name])
            model = str(self._run(name).model)
        return done

    def _fulfil(self, name: str, model: str) -> None:
        request = self.ledger.request(name)
        recipe = self._recipe(name, request, model)
        (record,) = pipeline.run_all([recipe], self.progress)
        folder, known = self._run(name), _known(model, recipe, request)
        results = [stored_attack(file) for file in sorted(folder.attacks.glob("*.json"))]
        own = standing(record.scores.forget.after, results, known)
        standings = {name: own, **self._earlier(name, recipe, folder)}
        self.ledger.fulfil(
            name,
            {
                "method": recipe.method,
                "run": str(folder.path),
                "model_before": weight_files(read_json(folder.source)["hashes"]),
                "model_after": weights_of(folder.model),
                "verdict": record.verdict,
                "before": known.log_odds,
                "lead": known.lead,
                "standings": standings,
            },
            folder.removed if folder.removed.is_file() else self.ledger.removed(),
        )

    def _earlier(self, name: str, recipe: Recipe, folder: RunFolder) -> dict[str, Standing]:
        """How the requests before `name` stand in the model that its run left."""
        found = {}
        for other, entry in self.ledger.fulfilled().items():
            request = self.ledger.request(other)
            told = Named(self.progress or Silent(), f"{name}: {other}")
            (now,) = score_sets(str(folder.model), recipe, request.forget)
            results = pipeline.attack_checkpoint(
                str(folder.model), recipe, request, folder.path / "earlier" / other, progress=told
            )
            found[other] = standing(summarise(now), results.values(), Known(entry.before or 0.0, entry.lead))
        return found

    def _recipe(self, name: str, request: Request, model: str) -> Recipe:
        """The recipe of the run, its data files those of the ledger and the joint retain side."""
        stored = self.ledger.folder / "requests"
        done = self.ledger.fulfilled()
        earlier = [self.ledger.request(other) for other in done]
        retain = self._written(f"{name}.retain.jsonl", _retain(name, request, earlier))
        test = {group: str(stored / name / "test" / f"{group}.jsonl") for group in request.test}
        test |= {f"request_{other}": str(stored / other / "forget.jsonl") for other in done}
        data: dict[str, Any] = {"forget": str(stored / name / "forget.jsonl"), "retain": str(retain), "test": test}
        if hold := [example for other in earlier for example in other.forget]:
            data["hold"] = str(self._written(f"{name}.hold.jsonl", hold))
        if request.attack:
            data["attack"] = str(stored / name / "attack.jsonl")
        keys = {**self.shared, "model": model, "data": data, "output": str(self._run(name).path)}
        recipe = Recipe.of(keys, f"request {name}")
        return pipeline.continued(recipe, self.ledger.removed())

    def _written(self, name: str, examples: Sequence[Example]) -> Path:
        """A file of examples beside the runs."""
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, "".join(f"{json.dumps(e.to_json(), sort_keys=True)}\n" for e in examples))
        return path

    def _run(self, name: str) -> RunFolder:
        return RunFolder(self.output / name)


def verify(ledger: Ledger, model: str) -> list[str]:
    """What was checked and holds: the chain, the stored requests, and that `model` is what the ledger ends with.

    Raises:
        InputError: something does not hold.
    """
    entries = ledger.entries()
    for name in ledger.received():
        ledger.request(name)
    if not ledger.fulfilled():
        raise InputError("No request was carried out yet.", str(ledger.file), "Run `expunge request apply` first.")
    require_last_model(ledger, model)
    last = next(entry for entry in reversed(entries) if entry.kind == "fulfilled")
    return [
        f"ledger: {len(entries)} entries, each with the hash of the one before it; the last is {entries[-1].digest()}",
        f"requests: the data of {len(ledger.received())} are those received",
        f"model: the one that request {last.request!r} left on {last.time}",
    ]


def require_last_model(ledger: Ledger, model: str) -> None:
    """InputError unless `model` has the weights that the ledger ends with; any will do for a ledger without runs."""
    last = next((entry for entry in reversed(ledger.entries()) if entry.kind == "fulfilled"), None)
    if last is None:
        return
    if not Path(model).is_dir():
        raise InputError("There is no model in this place.", model, f"The last one was left in {last.run}.")
    if weights_of(Path(model)) != last.model_after:
        raise InputError(
            "This is not the model that the ledger ends with.",
            model,
            f"Request {last.request!r} left it in {last.run}/model.",
        )


def weights_of(folder: Path) -> dict[str, str]:
    """sha256 of each weight file of a checkpoint."""
    return weight_files(folder_hashes(folder))


def _retain(name: str, request: Request, earlier: Sequence[Request]) -> list[Example]:
    """What this request and those before it keep, without what any request so far wants forgotten."""
    gone = {(e.prompt, e.answer) for each in (*earlier, request) for e in each.forget}
    attacks = {(e.prompt, e.answer) for e in request.attack}
    kept = {(e.prompt, e.answer): e for each in (*earlier, request) for e in each.retain}
    found = [example for key, example in kept.items() if key not in gone | attacks]
    if not found:
        raise InputError("Nothing is left to retain.", f"request {name}", "Give a retain set with the request.")
    return found


def _known(model: str, recipe: Recipe, request: Request) -> Known:
    """What the checkpoint `model` knows of what `request` wants forgotten."""
    twins = scored_twins(request)
    items, guesses = score_sets(model, recipe, request.forget, tuple(twins.values()))
    return Known.of(items, dict(zip(twins, guesses, strict=True)))
