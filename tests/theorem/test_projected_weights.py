"""All weights trained around a projection that stands: what it takes away is gone from the model at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.errors import InputError
from expunge.models.architecture import FAMILIES, base_linear, describe
from expunge.models.projections import project, save_rows
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import unlearn
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parametrizations.subspace import random_rows
from expunge.unlearning.transforms.dual import DualAscent
from families import family_model
from projection_runs import IDS, D, material, method, run
from tiny import make_tiny_model
from unlearning_runs import (
    SMOOTH,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    make_request,
    weights,
)

SETTINGS = {"train": "weights", "rank": 2, "layers": (0, 1)}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_folded_is_what_was_trained(family: str) -> None:
    model = family_model(family)
    plain, before = model(IDS).logits, weights(model)
    trained = Projection(**SETTINGS, tokens="content").bind(model, 0, material())
    assert torch.equal(model(IDS).logits, plain)
    assert len(trained.parameters) == len(list(model.parameters()))
    assert not trained.removed()
    trained.set_to_work()
    for parameter in trained.parameters.values():
        parameter.add_(1e-3)
    hooked, rows = model(IDS).logits, trained.removed()
    trained.fold()
    assert (hooked - plain).abs().max() > 1e-2
    assert (model(IDS).logits - hooked).abs().max() < 1e-4
    assert [len(rows[block]) for block in (0, 1)] == [2, 2]
    assert set(weights(model)) == set(before)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_loop_leaves_nothing_of_this_and_of_earlier_requests(tmp_path: Path) -> None:
    first = random_rows(2, torch.zeros(0, D), 7)
    save_rows(tmp_path / "rows.safetensors", {1: first})
    model = make_tiny_model()
    result = run(model, {**SETTINGS, "earlier": str(tmp_path / "rows.safetensors")}, max_steps=3)
    down = base_linear(describe(model).linears[1]["down"]).weight.detach()
    assert {block: len(rows) for block, rows in result.removed.items()} == {0: 2, 1: 4}
    assert (result.removed[1] @ down).norm() < 1e-6 * down.norm()
    assert project(first, result.removed[1]).abs().max() < 1e-6
    assert result.trained == sum(p.numel() for p in model.parameters())
    changed = weights(model)
    assert largest_difference({"e": changed["model.embed_tokens.weight"]},
                              {"e": weights(make_tiny_model())["model.embed_tokens.weight"]}) > 0  # fmt: skip


@torch.no_grad()
def test_one_number_that_moved_is_a_step() -> None:
    """A mask may leave all else where it was."""
    model = make_tiny_model()
    trained = Projection(**SETTINGS, tokens="content").bind(model, 0, material())
    assert not trained.removed()
    list(trained.parameters.values())[-1].flatten()[-1] += 1e-3
    assert len(trained.removed()) == 2


@pytest.mark.parametrize("train", ["new", "weights"])
def test_what_transforms_read_without_a_gradient_is_read_through_the_projection(train: str) -> None:
    """In the first step too: the retain loss that moves a dual weight is that of the step."""
    dual = replace(method(**{**SETTINGS, "train": train}), transforms=(DualAscent(),))
    arguments = UnlearnArguments(**{**SMOOTH, "max_steps": 2})
    made = unlearn(make_tiny_model(), make_encoder(), make_request(), dual, arguments)
    for step in made.history[1:]:
        assert step.transform["dual_retain_nll"] == pytest.approx(step.retain, rel=1e-5)


def test_without_a_step_the_weights_are_bit_equal() -> None:
    model = make_tiny_model()
    run(model, SETTINGS, max_steps=0)
    assert_same(weights(make_tiny_model()), weights(model))


def test_resumed_is_straight(tmp_path: Path) -> None:
    model, again = make_tiny_model(), make_tiny_model()
    result = run(model, SETTINGS, max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(again, SETTINGS, tmp_path, CutAfter(2), max_steps=4)
    again = make_tiny_model()
    resumed = run(again, SETTINGS, tmp_path, max_steps=4)
    assert_same(weights(model), weights(again))
    assert history(result) == history(resumed)
    assert_same({str(k): v for k, v in result.removed.items()}, {str(k): v for k, v in resumed.removed.items()})


def test_whole_blocks_cannot_be_kept_so() -> None:
    with pytest.raises(InputError, match="cannot be folded"):
        Projection(train="weights", site="block")
