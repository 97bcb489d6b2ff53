"""Adapters of several requests, fused: the least-squares map between them, and the start where no request has data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.errors import InputError
from expunge.models.architecture import describe
from expunge.models.tensors import load_tensors, save_tensors
from expunge.progress import Progress
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import build_method
from expunge.unlearning.parametrizations.base import Material
from expunge.unlearning.parametrizations.fused import FusedLoRA, fuse
from families import family_model
from projection_runs import IDS, material
from tiny import make_tiny_model
from unlearning_runs import (
    SMOOTH,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    make_request,
    make_uneven_request,
    weights,
)


def run(model: Any, output: Path | None = None, progress: Progress | None = None, **changes: Any) -> UnlearnResult:
    settings = {"parametrization": "fused", **changes.pop("settings", {})}
    name = changes.pop("method", "graddiff")
    arguments = UnlearnArguments(**{**SMOOTH, "learning_rate": 1e-2, "stop_log_odds": None, "max_steps": 3, **changes})
    method = build_method(name, None, settings)
    return unlearn(model, make_encoder(), make_request(), method, arguments, output=output, progress=progress)


def test_fusion_minimises_its_objective() -> None:
    """Against numpy's least squares on the stacked system, ridge rows included."""
    random = np.random.default_rng(3)
    inputs = [random.normal(size=(n, 6)) for n in (4, 9)]
    moves = [random.normal(size=(6, 5)) for _ in inputs]
    gram, moved = sum(x.T @ x for x in inputs), sum(x.T @ x @ w for x, w in zip(inputs, moves, strict=True))
    ridge = 0.02
    pull = np.sqrt(ridge * np.diag(gram).mean()) * np.eye(6)
    rows = np.vstack([*inputs, pull])
    wanted = np.vstack([*(x @ w for x, w in zip(inputs, moves, strict=True)), np.zeros((6, 5))])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    found = fuse(torch.tensor(gram), torch.tensor(moved), ridge)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_one_request_is_its_adapter_where_it_has_data(family: str) -> None:
    """With next to no ridge, the fused map sends the request's own inputs where the adapter sent them."""
    model, alone = family_model(family), family_model(family)
    trained = FusedLoRA(ridge=1e-12).bind(model, 0, material())
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.add_(0.05 * torch.randn_like(parameter)) if ".lora_B." in name else None
    start = {name: p for name, p in trained._state.items() if name.startswith("start")}
    trained.fold()
    assert set(weights(model)) == set(weights(alone))
    for name, linear in trained._linears.items():
        gram, moved = (trained._state[f"{kind}.{name}"] for kind in ("gram", "moved"))
        own = linear.weight.data.T if isinstance(linear, torch.nn.Linear) else linear.weight.data
        torch.testing.assert_close(gram @ (own - start[f"start.{name}"]).double(), moved, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert (model(IDS).logits - alone(IDS).logits).abs().max() > 1e-3


def test_the_second_request_starts_where_the_first_one_did(tmp_path: Path) -> None:
    path, model = tmp_path / "first.safetensors", make_tiny_model()
    first = run(model)
    assert {name.split(".")[0] for name in first.carried} == {"start", "gram", "moved"}
    save_tensors(path, first.carried)
    after_one = weights(model)
    trained = FusedLoRA(earlier=str(path)).bind(model, 0, material())
    start = make_tiny_model()
    for block, linears in enumerate(describe(start).linears):
        for short, linear in linears.items():
            inside = describe(model).linears[block][short]
            assert torch.equal(getattr(inside, "base_layer", inside).weight, linear.weight)
    trained.fold()  # no step was made: what the first request left is back
    assert_same(weights(model), after_one)
    second = run(model, settings={"earlier": str(path)})
    stored = load_tensors(path)
    name = next(name for name in stored if name.startswith("gram"))
    more = second.carried[name] - stored[name]
    assert torch.linalg.eigvalsh(more).min() > -1e-6 * more.diagonal().max()
    assert more.norm() > 0
    assert torch.equal(second.carried[name.replace("gram", "start")], stored[name.replace("gram", "start")])


def test_the_second_request_is_held_where_it_starts(tmp_path: Path) -> None:
    """KL(start || model) of the retain side is 0 in the first step: training begins there, not at the fused model."""
    path, model = tmp_path / "first.safetensors", make_tiny_model()
    save_tensors(path, run(model, method="kl").carried)
    assert largest_difference(weights(model), weights(make_tiny_model())) > 1e-3
    _, first, *_ = run(model, method="kl", settings={"earlier": str(path)}).history
    assert first.retain is not None and abs(first.retain) < 1e-6


def test_padding_has_no_part_in_what_a_map_saw() -> None:
    """Rows of many lengths, together and one by one."""
    request, grams = make_uneven_request(), []
    for rows in (16, 1):
        encoded = [make_encoder().encode(e.prompt, e.answer) for e in (*request.forget, *request.retain)]
        trained = FusedLoRA().bind(make_tiny_model().double(), 0, Material(encoded, (), 0, rows=rows))
        grams.append(trained._grams())
        trained.fold()
    assert largest_difference(*grams) < 1e-10


def test_without_a_step_the_weights_are_bit_equal() -> None:
    model = make_tiny_model()
    result = run(model, max_steps=0)
    assert not result.carried
    assert_same(weights(make_tiny_model()), weights(model))


def test_resumed_is_straight(tmp_path: Path) -> None:
    model, again = make_tiny_model(), make_tiny_model()
    result = run(model)
    with pytest.raises(KeyboardInterrupt):
        run(again, tmp_path, CutAfter(1))
    again = make_tiny_model()
    resumed = run(again, tmp_path)
    assert largest_difference(weights(model), weights(again)) == 0
    assert history(result) == history(resumed)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ridge"):
        FusedLoRA(ridge=0.0)
    with pytest.raises(InputError, match="cannot be read"):
        FusedLoRA(earlier=str(tmp_path / "none")).bind(make_tiny_model(), 0, material())
    save_tensors(tmp_path / "other.safetensors", {"gram.x": torch.eye(2)})
    with pytest.raises(InputError, match="not the adapters"):
        FusedLoRA(earlier=str(tmp_path / "other.safetensors")).bind(make_tiny_model(), 0, material())
