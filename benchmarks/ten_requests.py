"""Ten deletion requests on people, through the ledger: after each all so far are scored and attacked again."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from expunge.catalogue import DEFAULT_ATTACKS
from expunge.continual.fulfil import Requests
from expunge.continual.ledger import Ledger
from expunge.data.benchmarks.streams import STREAMS
from expunge.progress import Silent
from expunge.recipe import Recipe
from expunge.request import Request
from expunge.settings import merge, read_yaml
from expunge.source import built, chosen, trained_here
from measure import Claim, Result, Settings, main

RECIPE = Path(__file__).parent.parent / "recipes" / "continual_people.yaml"
METHODS = ("graddiff", "mrp", "durable")
MINUTES = 6


def measure(settings: Settings, result: Result) -> None:
    """Bar: six minutes. Attacks are those that `expunge request apply` makes of itself, at its settings."""
    tree = read_yaml(RECIPE)
    recipe = Recipe.of({"model": tree["model"], "data": tree["data"]}, RECIPE.name)
    source = chosen(recipe.data, STREAMS)
    stream = built(source, recipe.data, known=None)
    model = trained_here(source, stream.so_far(len(stream.ids)), recipe, Silent(), with_forget=True)
    common = {"attacks": {name: {} for name in DEFAULT_ATTACKS}, "unlearn": tree["unlearn"]}
    for method in METHODS:
        with TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "ledger")
            for name in stream.ids:
                ledger.add(Request(stream.requests[name], stream.retain, attack=stream.held_out), name)
            shared = merge({**common, "method": method}, tree["methods"][method] or {})
            began = time.perf_counter()
            done = Requests(ledger, Path(folder) / "runs", shared).fulfil(model)
            minutes = (time.perf_counter() - began) / 60
        audits = sum(len(entry.standings) for entry in done)
        counted = {"requests": len(done), "times that one was scored and attacked": audits}
        result.rows[method] = {**counted, "minutes": round(minutes, 2)}
        result.claims.append(
            Claim(f"minutes of {len(done)} requests on `people` by {method}", minutes, MINUTES, at_least=False)
        )
    facts = {len(own) for own in stream.requests.values()}
    result.notes.append(f"{stream.name}: {' or '.join(map(str, sorted(facts)))} facts a request")


if __name__ == "__main__":
    main("ten_requests", measure)
