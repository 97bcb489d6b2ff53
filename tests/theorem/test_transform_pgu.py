"""PGU: what the linear maps say to retain inputs does not move, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.collate import collate
from expunge.errors import InputError
from expunge.models.architecture import base_linear, describe
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.transforms import pgu
from expunge.unlearning.transforms.neurons import KnowledgeNeuronMask
from expunge.unlearning.transforms.pgu import ProjectedGradient, principal_directions, project_out
from expunge.unlearning.transforms.sparse import SparsityMask
from families import family_model
from tiny import make_tiny_model
from transform_runs import PLAIN_DESCENT, assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import EXAMPLES, assert_same, largest_difference, make_encoder, weights

DESCENT = PLAIN_DESCENT | {"learning_rate": 1e6}
ADAMW = {"learning_rate": 1e-2, "weight_decay": 0.1}


def inputs_and_outputs(model: PreTrainedModel, examples: slice) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """By name what goes into each linear map of the blocks at positions that predict a token, and the map itself."""
    encoder, heard = make_encoder(), {}
    rows = collate([encoder.encode(e.prompt, e.answer) for e in EXAMPLES[examples]], encoder.pad_id)
    names = {id(module): name for name, module in model.named_modules()}
    hooks = []
    for linears in describe(model).linears:
        for module in map(base_linear, linears.values()):

            def hear(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
                heard[names[id(module)]] = (inputs[0][rows.attention_mask[:, 1:].bool()], module)

            hooks.append(module.register_forward_pre_hook(hear))
    with torch.no_grad():
        model(input_ids=rows.input_ids[:, :-1])
    for hook in hooks:
        hook.remove()
    return heard


def said(maps: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: module(x) for name, (x, module) in maps.items()}


@pytest.mark.parametrize("arguments", [DESCENT, ADAMW], ids=["descent", "adamw"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_outputs_on_retain_inputs_stay(family: str, arguments: dict[str, float]) -> None:
    """With all of the spectrum kept, every map answers the retain inputs of the start as it did at the start."""
    model = family_model(family).double()
    retain, forget = (inputs_and_outputs(model, which) for which in (slice(5, None), slice(5)))
    sides = retain, forget
    before = [said(side) for side in sides]
    start = weights(model)
    transformed(ProjectedGradient(energy=1.0), model=model, max_steps=5, **arguments)
    kept, moved = (largest_difference(now, said(side)) for now, side in zip(before, sides, strict=True))
    assert moved > 1e-3
    assert kept < 1e-6 * moved
    names = {f"{n}.weight" for n in retain}
    after = weights(model)
    assert_same({n: w for n, w in start.items() if n not in names}, {n: w for n, w in after.items() if n not in names})


def test_so_the_retain_answers_stay_altogether() -> None:
    model = make_tiny_model().double()
    encoder = make_encoder()
    ids = torch.tensor([encoder.encode(e.prompt, e.answer).ids for e in EXAMPLES])
    before = model(input_ids=ids).logits[:, :-1].detach()
    transformed(ProjectedGradient(energy=1.0), model=model, max_steps=5, **ADAMW)
    change = (model(input_ids=ids).logits[:, :-1].detach() - before).abs().amax((1, 2))
    assert float(change[:5].min()) > 1e-3
    assert float(change[5:].max()) < 1e-5 * float(change[:5].min())


def test_under_plain_descent_the_step_is_the_projected_gradient() -> None:
    start = transformed(max_steps=0)[1]
    result, after = transformed(ProjectedGradient(energy=0.8), max_steps=1, **DESCENT)
    step = torch.cat([(after[name] - start[name]).flatten() for name in start])
    assert float(step.norm()) == pytest.approx(1e-2 * (result.history[1].grad_norm or 0.0), rel=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.95, 1.0])
def test_directions_are_those_of_a_singular_value_decomposition(energy: float) -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 0.5, 0.1, 0.01]
    _, s, vt = np.linalg.svd(inputs)
    q = next(q for q in range(1, 7) if s[:q].sum() >= energy * s.sum() * (1 - 1e-12))
    kept = principal_directions(torch.tensor(inputs.T @ inputs), energy).numpy()
    assert kept.shape == (6, q)
    assert np.abs(kept @ kept.T - vt[:q].T @ vt[:q]).max() < 1e-8


def test_projecting_twice_changes_nothing_and_conv1d_is_the_transpose() -> None:
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 3, generator=draw, dtype=torch.float64)).Q
    change = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    once = project_out(change.clone(), directions, transposed=False)
    assert float((once @ directions).abs().max()) < 1e-12 < float(once.abs().max())
    assert torch.allclose(project_out(once.clone(), directions, transposed=False), once)
    assert torch.allclose(project_out(change.T.clone(), directions, transposed=True), once.T)


def test_several_passes_over_the_retain_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = transformed(ProjectedGradient(), max_steps=2)[1]
    monkeypatch.setattr(pgu, "_COVARIANCE_BYTES", 1)
    assert largest_difference(whole, transformed(ProjectedGradient(), max_steps=2)[1]) < 1e-10


def test_resumed_is_straight(tmp_path: Path) -> None:
    assert_resumed_is_straight(ProjectedGradient(energy=0.8), tmp_path)


def test_the_cut_of_a_step_changes_nothing() -> None:
    assert_cut_changes_nothing(ProjectedGradient(energy=0.8), tolerance=1e-8)


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(InputError, match="adapters"):
        transformed(ProjectedGradient(), parametrization=LoRA(rank=2), double=False)
    with pytest.raises(InputError, match="retain"):
        transformed(ProjectedGradient(), objective=GradientAscent())
    with pytest.raises(InputError, match="no linear map"):
        transformed(ProjectedGradient(), parametrization=Layers(("*layernorm*",)))
    for mask in (SparsityMask(), KnowledgeNeuronMask()):
        for both in ((ProjectedGradient(), mask), (mask, ProjectedGradient())):
            with pytest.raises(InputError, match="a mask holds still"):
                transformed(*both, double=False)
    with pytest.raises(InputError, match="energy=0"):
        ProjectedGradient(energy=0.0)
