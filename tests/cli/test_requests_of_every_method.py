"""Two requests, one after the other, by every method of the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.intervals import bootstrap
from expunge.continual.fulfil import Requests, verify
from expunge.continual.ledger import ADAPTERS, MLP_ROWS, Ledger
from expunge.data.example import Example
from expunge.folder import RunFolder
from expunge.recipe import Recipe
from expunge.request import Request
from expunge.unlearning.methods import METHODS
from expunge.unlearning.parametrizations.projection import Projection

OF_TWO_BLOCKS = {
    "rmu": {"objective.layer": 1, "parametrization.layers": [0, 1]},
    "npo_lau": {"transform.layer": 0},
}
"""Settings that name blocks which the tiny model does not have."""

CARRIED = {"eul": ADAPTERS, "mrp": MLP_ROWS, "durable_mrp": MLP_ROWS, "mrp_code": "rows at block"}
"""What a request leaves for the next one beside its model."""


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("method", METHODS)
def test_a_second_request_goes_on_from_the_first(
    method: str,
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_examples: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(bootstrap.__kwdefaults__, "resamples", 20)  # a third of the time went there
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(Request(tiny_examples[:2], tiny_examples[4:6]), "one")
    ledger.add(Request(tiny_examples[2:4], tiny_examples[6:]), "two")
    settings: dict[str, Any] = dict(OF_TWO_BLOCKS.get(method, {}))
    if isinstance(METHODS[method].parametrization, Projection):
        settings |= {"rank": 1, "init": "random"}
    loop = {"max_steps": 1, "min_steps": 0, "learning_rate": 1e-3, "stop_log_odds": None}
    shared = {"method": method, "settings": settings, "unlearn": loop, "attacks": {}}
    one, two = Requests(ledger, tmp_path / "runs", shared).fulfil(str(tmp_path / "model"))

    assert one.model_before != one.model_after == two.model_before != two.model_after
    assert (one.standings.keys(), two.standings.keys()) == ({"one"}, {"one", "two"})
    assert one.carries == two.carries == CARRIED.get(method, "")
    last = RunFolder(Path(two.run))
    verify(ledger, str(last.model))
    recipe = Recipe.load(last.path / "recipe.yaml")
    # What the first one made go is held, not trained on as what must stay; what both retain is.
    assert recipe.data.hold is not None
    assert ("parametrization.earlier" in recipe.settings) == (method in CARRIED)
