"""What an attacker of a projected model regrows: all he likes once merged, nothing while it is enforced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.attacks.relearn import RelearnHarmful
from expunge.attacks.weights import lent
from expunge.continual.record import Setting
from expunge.continual.relearning import SETTINGS, Asked, enforced, outcome, relearn, rest_of
from expunge.models.architecture import base_linear, describe
from expunge.progress import Silent
from expunge.stream import Stream
from expunge.unlearning.parametrizations.projector import fold_projection
from expunge.unlearning.parametrizations.subspace import random_rows
from families import family_model
from lessons import fit, told
from projection_runs import IDS, D
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, largest_difference, make_encoder, weights

BLOCK = 1


def folded(model: PreTrainedModel) -> dict[int, Tensor]:
    """Rows that block 1 of `model` loses for good."""
    rows = random_rows(3, torch.zeros(0, D), 5)
    fold_projection(base_linear(describe(model).linears[BLOCK]["down"]), rows.double())
    return {BLOCK: rows}


def share_inside(model: PreTrainedModel, rows: Tensor) -> float:
    """How much of the MLP's output, on the way to the rest of the model, lies in the span of `rows`."""
    seen: list[Tensor] = []
    linear = base_linear(describe(model).linears[BLOCK]["down"])
    handle = linear.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return float((seen[0] @ rows.T).norm() / seen[0].norm())


def attacked(model: PreTrainedModel, setting: Setting, rows: dict[int, Tensor]) -> float:
    """The share after three steps of relearning in one setting."""
    encoder = make_encoder()
    with lent(model), enforced(model, setting, rows):
        fit(model, encoder, told(EXAMPLES), 3, decay=0.01)
        return share_inside(model, rows[BLOCK])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_what_is_enforced_stays_removed(family: str) -> None:
    model = family_model(family)
    rows = folded(model)
    assert share_inside(model, rows[BLOCK]) < 1e-6
    found = {setting: attacked(model, setting, rows) for setting in SETTINGS}
    assert found["merged"] > 0.01
    assert found["frozen"] < 1e-5
    assert found["reapplied"] < 1e-5
    assert share_inside(model, rows[BLOCK]) < 1e-6


def test_nothing_stays_behind() -> None:
    """The model, its hooks, and the optimizers of others are as they were."""
    model = make_tiny_model()
    rows, before = folded(model), weights(model)
    for setting in SETTINGS:
        attacked(model, setting, rows)
    assert largest_difference(before, weights(model)) == 0
    assert not base_linear(describe(model).linears[BLOCK]["down"])._forward_hooks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert share_inside(model, rows[BLOCK]) > 0.01


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_request_is_tuned_on_and_all_are_scored(setting: Setting, tmp_path: Path) -> None:
    stream = Stream("two", {"a": EXAMPLES[:4], "b": EXAMPLES[4:6]}, EXAMPLES[6:7], EXAMPLES[7:8])
    attack = RelearnHarmful(fraction=0.5, learning_rates=(1e-3, 1e-2), max_steps=4, eval_every=2)
    model = make_tiny_model()
    rows = folded(model)
    asked = Asked.of(stream, attack, {})
    rest = rest_of(asked, make_encoder(), model, None)
    made = [
        outcome(setting, asked, relearn(model, make_encoder(), asked, attack, setting, rows, Silent(), tmp_path), rest)
        for _ in range(2)
    ]
    assert made[0] == made[1], "the second one out of the store"
    found = made[0]
    assert found.twins == {}
    assert {name: one.n for name, one in found.sets.items()} == {"a": 2, "b": 2}
    assert len(found.curve) == 2 * 3
    best = sum(one.log_odds * one.n for one in found.sets.values()) / 4
    assert best == pytest.approx(max(odds for _, _, odds in found.curve), abs=1e-4)
