"""Projections of whole blocks stay in the model; trained with earlier rows they may lose what these removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from expunge.models.architecture import FAMILIES, describe
from expunge.models.checkpoint import save_pretrained_atomic
from expunge.models.load import load_model
from expunge.models.projections import FILE, attached, detach, project, save_rows
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parametrizations.subspace import random_rows
from families import family_model
from projection_runs import IDS, D, disturb, material, run
from tiny import make_tiny_model
from unlearning_runs import assert_same, weights


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_at_a_block_the_projection_stays_and_comes_back_from_disk(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    plain, names, before = model(IDS).logits, list(weights(model)), weights(model)
    projected = Projection(rank=2, layers=(0, 1), site="block", tokens="content").bind(model, 0, material())
    assert torch.equal(model(IDS).logits, plain)  # no step was made
    disturb(projected)
    hooked = model(IDS).logits
    projected.fold()
    kept = model(IDS).logits
    assert (hooked - plain).abs().max() > 1e-2
    assert (kept - hooked).abs().max() < 1e-4
    assert list(weights(model)) == names
    assert_same(before, weights(model))  # nothing of it is in the weights
    rows = projected.removed()
    assert attached(model).keys() == rows.keys() == {0, 1}
    states = model(IDS, output_hidden_states=True).hidden_states[1]
    assert (states @ rows[0].T).abs().max() < 1e-5 * states.abs().max()
    for block in describe(model).blocks:
        detach(block)
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_a_saved_model_keeps_its_projection_for_us_and_loses_it_elsewhere(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_tiny_model()
    plain = model(IDS).logits
    projected = Projection(rank=2, layers=(1,), site="block", init="random").bind(model, 0)
    disturb(projected)
    projected.fold()
    save_pretrained_atomic(model, tiny_tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / FILE).is_file()
    assert torch.equal(load_model(tmp_path / "model").model(IDS).logits, model(IDS).logits)
    elsewhere = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(elsewhere(IDS).logits, plain)
    again = Projection(rank=1, layers=(1,), site="block", init="random").bind(model, 1)
    disturb(again, 1)
    again.fold()
    first, both = projected.removed()[1], attached(model)[1]
    assert len(both) == 3 and project(first, both).abs().max() < 1e-6


def test_a_run_at_a_block_forgets_and_leaves_the_weights_alone() -> None:
    model = make_tiny_model()
    result = run(model, {"site": "block"}, max_steps=12, adam_epsilon=1e-8, learning_rate=5e-2)
    values = [metrics.forget_log_odds for metrics in result.history if metrics.forget_log_odds is not None]
    assert values[-1] < values[0] - 0.5
    assert_same(weights(make_tiny_model()), weights(model))
    assert result.final.log_odds == pytest.approx(values[-1], abs=1e-4)


def test_combined_training_may_lose_what_was_removed_and_new_may_not(tmp_path: Path) -> None:
    path, first = tmp_path / "rows.safetensors", random_rows(2, torch.zeros(0, D), 7)
    save_rows(path, {1: first})
    lost = {}
    for train_which in ("new", "combined"):
        parametrization = Projection(rank=1, init="random", layers=(1,), earlier=str(path), train=train_which)  # type: ignore[arg-type]
        projected = parametrization.bind(make_tiny_model(), 0)
        assert sum(len(rows) for rows in projected.parameters.values()) == (1 if train_which == "new" else 3)
        disturb(projected)
        projected.fold()
        assert len(projected.removed()[1]) == 3
        lost[train_which] = float(project(first, projected.removed()[1]).abs().max())
    assert lost["new"] < 1e-6 < 1e-2 < lost["combined"]
