"""A projection removes a subspace for good: P^2 = P = P^T, earlier rows stay removed, and folding changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.collate import collate
from expunge.errors import InputError
from expunge.models.architecture import FAMILIES, base_linear, describe
from expunge.models.projections import load_rows, project, save_rows
from expunge.progress import Silent
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import train
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parametrizations.projector import Projector, fold_projection
from expunge.unlearning.parametrizations.subspace import random_rows, row_space
from expunge.unlearning.stopping import StopReason
from families import family_model
from projection_runs import IDS, D, disturb, material, method, run
from tiny import make_tiny_model
from unlearning_runs import (
    EXAMPLES,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    weights,
)


def outputs(model: PreTrainedModel, block: int) -> Tensor:
    """What the MLP of a block adds, one row per position."""
    linear, seen = base_linear(describe(model).linears[block]["down"]), []
    handle = linear.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return seen[0].flatten(0, -2)


@pytest.mark.parametrize("r", [0, 3])
def test_p_is_an_orthogonal_projection_of_the_right_rank(r: int) -> None:
    fixed = random_rows(r, torch.zeros(0, D, dtype=torch.float64), 1) if r else torch.zeros(0, D, dtype=torch.float64)
    projector = Projector(fixed, torch.randn(4, D, dtype=torch.float64), fixed[:0], lambda: True)
    p = projector(torch.eye(D, dtype=torch.float64)).detach()
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-12)
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-12)
    assert int(torch.linalg.matrix_rank(p)) == D - 4 - r
    gone = torch.cat([fixed, projector.rows.detach()])
    assert project(gone, projector.basis().detach()).abs().max() < 1e-12
    expected = np.eye(D) - np.linalg.pinv(gone.numpy()) @ gone.numpy()
    np.testing.assert_allclose(p.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("s", [0, 1])
def test_the_gradient_of_the_rows_is_that_of_finite_differences(s: int) -> None:
    torch.manual_seed(0)
    states, direction = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    fixed = row_space(torch.randn(1, 5, dtype=torch.float64))
    spared = row_space(torch.randn(1, 5, dtype=torch.float64))[:s]
    projector = Projector(fixed, torch.randn(2, 5, dtype=torch.float64), spared, lambda: True)
    (projector(states) * direction).sum().backward()

    def value(rows: np.ndarray) -> float:
        gone = np.vstack([fixed.numpy(), rows - rows @ spared.numpy().T @ spared.numpy()])
        return float(np.sum(direction.numpy() * (states.numpy() @ (np.eye(5) - np.linalg.pinv(gone) @ gone))))

    rows, step = projector.rows.detach().numpy(), 1e-6
    expected = np.zeros_like(rows)
    for place in np.ndindex(*rows.shape):
        moved = np.zeros_like(rows)
        moved[place] = step
        expected[place] = (value(rows + moved) - value(rows - moved)) / (2 * step)
    assert projector.rows.grad is not None
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(projector.rows.grad.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("init", ["paper", "random"])
def test_a_sink_stays_as_it_is_where_it_is_spared(init: str) -> None:
    """A thousand along one direction at the first position: ordinary positions say nothing of it."""
    model, u = make_tiny_model(), row_space(torch.randn(1, D, generator=torch.Generator().manual_seed(1)))

    def plant(module: torch.nn.Module, args: object, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1] + 1e3 * u, out[:, 1:]], 1)

    base_linear(describe(model).linears[1]["down"]).register_forward_hook(plant)
    moved = {}
    for keep in (True, False):
        settings: dict[str, Any] = {"rank": 3, "layers": (0, 1), "tokens": "content", "init": init, "keep_sinks": keep}
        projected = Projection(**settings).bind(model, 0, material())
        before = outputs(model, 1).view(*IDS.shape, D)
        disturb(projected)
        after = outputs(model, 1).view(*IDS.shape, D)
        moved[keep] = float((after - before)[:, 0].detach().norm(dim=1).max())
        assert (after - before)[:, 1:].abs().max() > 1e-2
        assert len(projected.removed()[1]) == 3
        projected.fold()
    assert moved[False] > 100 and moved[True] < 10


@pytest.mark.parametrize("init", ["paper", "leace", "random"])
@torch.no_grad()
def test_the_leading_directions_of_everyday_text_stay_whatever_the_training(init: str) -> None:
    """Against numpy: the fewest directions that hold three quarters of the text's states, each of length 1."""
    model, encoder = make_tiny_model().double(), make_encoder()
    text = [encoder.encode_text(e.prompt) for e in EXAMPLES]
    items = material()
    settings: dict[str, Any] = {"rank": 2, "layers": (1,), "init": init, "spare_text": 0.75}
    projected = Projection(**settings).bind(model, 0, replace(items, everyday=lambda: text))
    disturb(projected)
    (rows,) = projected.removed().values()
    projected.fold()
    plain, seen = make_tiny_model().double(), list[np.ndarray]()
    down = base_linear(describe(plain).linears[1]["down"])
    down.register_forward_hook(lambda module, args, out: seen.append(out[0, 1:].numpy()))
    for encoded in text:
        plain(torch.tensor([encoded.ids]))
    states = np.concatenate(seen)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(states.T @ states)
    held = int((np.cumsum(values[::-1]) < 0.75 * values.sum()).sum()) + 1
    assert 2 < held < D - 4
    assert np.abs(rows.numpy() @ vectors[:, ::-1][:, :held]).max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_folded_is_hooked_and_the_model_is_an_ordinary_one(family: str) -> None:
    model = family_model(family)
    attributes, names = set(vars(model)), list(weights(model))
    modules = {name: type(module) for name, module in model.named_modules()}
    plain = model(IDS).logits
    projected = Projection(rank=3, layers=(0, 1), tokens="content").bind(model, 0, material())
    assert torch.equal(model(IDS).logits, plain)  # no step was made
    disturb(projected)
    hooked = model(IDS).logits
    bases = projected.removed()
    projected.fold()
    folded = model(IDS).logits
    assert (hooked - plain).abs().max() > 1e-2
    assert (folded - hooked).abs().max() < 1e-4
    assert [bases[block].shape for block in (0, 1)] == [(3, D)] * 2
    assert all(torch.equal(bases[block], rows) for block, rows in projected.removed().items())
    assert all((outputs(model, block) @ rows.T).abs().max() < 1e-5 for block, rows in bases.items())
    assert set(vars(model)) == attributes
    assert list(weights(model)) == names
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@torch.no_grad()
def test_bf16_leaks_no_more_than_its_own_rounding() -> None:
    model = make_tiny_model().bfloat16()
    projected = Projection(rank=3, init="random").bind(model, 0)
    assert {p.dtype for p in projected.parameters.values()} == {torch.float32}
    disturb(projected)
    hooked = model(IDS).logits.float()
    (rows,) = projected.removed().values()
    projected.fold()
    folded, after = model(IDS).logits.float(), outputs(model, 1).float()
    assert (folded - hooked).abs().max() < 0.02 * hooked.abs().max()
    assert (after @ rows.T).norm() < 0.005 * after.norm()


def test_what_an_earlier_request_removed_stays_removed(tmp_path: Path) -> None:
    """Ten requests, each trained on from the last; the rows of each are gone from the outputs at the end."""
    model, path, seen = make_tiny_model(), tmp_path / "rows.safetensors", []
    for number in range(10):
        earlier = str(path) if number else None
        parametrization = Projection(rank=1, layers=(0, 1), earlier=earlier, init="random" if number else "paper")
        projected = parametrization.bind(model, number, material())
        disturb(projected, number)
        projected.fold()
        seen.append(projected.removed())
        save_rows(path, seen[-1])
    assert [len(rows[1]) for rows in seen] == list(range(1, 11))
    assert not list(tmp_path.glob(".tmp*"))
    for bases in seen:
        for block, rows in bases.items():
            linear = base_linear(describe(model).linears[block]["down"])
            assert (rows @ linear.weight.detach()).norm() < 1e-6 * linear.weight.detach().norm()
            assert project(rows.double(), load_rows(path)[block].double()).abs().max() < 1e-6


def test_rows_of_a_block_not_chosen_now_are_carried_on(tmp_path: Path) -> None:
    path, first = tmp_path / "rows.safetensors", random_rows(2, torch.zeros(0, D), 7)
    save_rows(path, {0: first})
    projected = Projection(rank=1, init="random", layers=(1,), earlier=str(path)).bind(make_tiny_model(), 0)
    assert list(projected.removed()) == [0]  # no step was made
    disturb(projected)
    projected.fold()
    bases = projected.removed()
    assert {block: len(rows) for block, rows in bases.items()} == {0: 2, 1: 1}
    assert project(first, bases[0]).abs().max() < 1e-6


def test_earlier_rows_hold_through_training_even_where_the_weights_have_regrown(tmp_path: Path) -> None:
    """The loop trains a model whose weights bring the removed direction back, given the rows of the first request."""
    model, path = make_tiny_model(), tmp_path / "rows.safetensors"
    first = random_rows(2, torch.zeros(0, D), 7)
    save_rows(path, {1: torch.cat([first, 0 * first])})
    assert (outputs(model, 1) @ first.T).abs().max() > 0.01
    run(model, {"earlier": str(path)})
    after = outputs(model, 1)
    assert (after @ first.T).abs().max() < 1e-6 * after.norm()
    weight = base_linear(describe(model).linears[1]["down"]).weight
    assert int(torch.linalg.matrix_rank(weight)) == D - 2 - 2  # the rows of zeros have taken no direction with them


@pytest.mark.parametrize("init", ["paper", "code", "random", "leace"])
def test_a_run_forgets_and_moves_only_the_down_projections(init: str) -> None:
    model, before = make_tiny_model(), weights(make_tiny_model())
    result = run(model, {"init": init}, max_steps=12, adam_epsilon=1e-8, learning_rate=5e-2)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"model.layers.1.mlp.down_proj.weight"}
    values = [metrics.forget_log_odds for metrics in result.history if metrics.forget_log_odds is not None]
    assert values[-1] < values[0] - 0.5
    assert result.final.log_odds == pytest.approx(values[-1], abs=1e-4)


def test_begun_at_a_known_subspace_of_the_data() -> None:
    """`paper` against numpy on the states themselves; the rows begin orthonormal and outside the retain subspace."""
    model = make_tiny_model()
    given, states = material(), []
    for items in (given.forget, given.retain):
        batch = collate(items, 0)
        linear, seen = base_linear(describe(model).linears[1]["down"]), []
        handle = linear.register_forward_hook(lambda module, args, out: seen.append(out))  # noqa: B023
        with torch.no_grad():
            model(batch.input_ids)
        handle.remove()
        states.append(seen[0][batch.answer_mask.roll(-1, 1)].double().numpy())
    forget, retain = states
    _, values, rows = np.linalg.svd(retain, full_matrices=False)
    kept = rows[: int(np.argmax(np.cumsum(values**2) >= 0.95 * np.sum(values**2))) + 1]
    expected = np.linalg.svd(forget - forget @ kept.T @ kept)[2][:3]
    projected = Projection(rank=3).bind(model, 0, given)
    (found,) = projected.parameters.values()
    projected.fold()
    np.testing.assert_allclose(np.abs(found.detach().numpy() @ expected.T), np.eye(3), atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"init": "random"}])
def test_without_a_step_the_weights_are_bit_equal(settings: dict[str, Any]) -> None:
    model = make_tiny_model()
    nothing = train(
        model, make_encoder(), (), EXAMPLES, method(**settings), UnlearnArguments(), output=None, progress=Silent()
    )
    assert nothing.stop_reason == StopReason.NOTHING_TO_FORGET
    assert run(model, settings, stop_log_odds=99.0, stop_within=None).stop_reason == StopReason.FORGOTTEN
    assert run(model, settings, max_steps=0).stop_reason == StopReason.MAX_STEPS
    assert_same(weights(make_tiny_model()), weights(model))


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("arguments", [{}, {"eval_steps": 5, "stop_log_odds": -0.5, "stop_within": 0.1}])
def test_resumed_is_straight(cut: int, arguments: dict[str, Any], tmp_path: Path) -> None:
    straight, model, again = {"max_steps": 5, **arguments}, make_tiny_model(), make_tiny_model()
    result = run(model, **straight)
    with pytest.raises(KeyboardInterrupt):
        run(again, None, tmp_path, CutAfter(cut), **straight)
    assert list(weights(again)) == list(weights(model))
    assert not any(module._forward_hooks for module in again.modules())
    again = make_tiny_model()
    resumed = run(again, None, tmp_path, **straight)
    assert_same(weights(model), weights(again))
    assert history(result) == history(resumed)
    assert result.final == resumed.final


def test_the_cut_into_micro_batches_changes_nothing() -> None:
    found = []
    for rows, times in ((4, 1), (2, 2), (1, 4)):
        model = make_tiny_model().double()
        run(model, None, per_device_train_batch_size=rows, gradient_accumulation_steps=times)
        found.append(weights(model))
    assert largest_difference(weights(make_tiny_model().double()), found[0]) > 1e-3
    assert largest_difference(found[0], found[1]) < 1e-10
    assert largest_difference(found[0], found[2]) < 1e-10


def test_layers_are_all_but_the_first_those_named_or_those_with_most_energy_outside() -> None:
    model = make_tiny_model(num_hidden_layers=4)
    down = describe(model).linears[2]["down"]
    basis = torch.linalg.qr(torch.randn(D, D)).Q[:, :1]
    with torch.no_grad():  # one direction only: none of it is outside
        base_linear(down).weight.copy_(basis @ basis.T @ base_linear(down).weight)

    def chosen(**settings: Any) -> list[int]:
        projected = Projection(rank=1, **settings).bind(model, 0, material())
        projected.fold()
        return sorted(int(name.split(".")[2]) for name in projected.parameters)

    assert chosen(init="random") == [1, 2, 3]
    assert chosen(layers=(-1, 0)) == [0, 3]
    assert chosen() == [1, 3]
    assert chosen(init="random", n_layers=2) == [1, 3]
    drawn = sorted(random.Random(0).sample([1, 2, 3], 2))
    assert chosen(init="random", n_layers=2, layers_by="seed") == drawn
    assert chosen(n_layers=2, layers_by="seed") == [block for block in drawn if block != 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"energy": 1.0}, "energy must be"),
        ({"spare_text": 1.0}, "spare_text must be"),
        ({"n_layers": -1}, "number of layers"),
        ({"layers": (7,)}, "no block 7"),
        ({"init": "paper"}, "there are none"),
        ({"rank": 33, "init": "random"}, "no room for 33"),
        ({"earlier": "/nowhere/rows"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], message: str) -> None:
    model = make_tiny_model()
    with pytest.raises(InputError, match=message):
        Projection(**settings).bind(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_rows_of_another_model_or_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_rows(path, {1: torch.eye(3)})
    with pytest.raises(InputError, match=r"no room.*block 1"):
        Projection(init="random", earlier=str(path)).bind(make_tiny_model(), 0)
    save_rows(path, {2: torch.eye(D)[:1]})
    with pytest.raises(InputError, match="no block 2"):
        Projection(init="random", earlier=str(path)).bind(make_tiny_model(), 0)
    model = make_tiny_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no file of a projection's rows"):
        load_rows(tmp_path / "model.safetensors")


def test_random_rows_are_orthonormal_outside_the_fixed_ones_and_the_seed_s() -> None:
    fixed = random_rows(3, torch.zeros(0, D).double(), 0)
    rows = random_rows(4, fixed, 1)
    torch.testing.assert_close(rows @ torch.cat([rows, fixed]).T, torch.eye(4, 7).double(), rtol=0, atol=1e-12)
    assert torch.equal(rows, random_rows(4, fixed, 1))
    assert not torch.equal(rows, random_rows(4, fixed, 2))


def test_random_rows_of_the_next_request_are_drawn_anew_with_an_equal_seed() -> None:
    # Outside the span of an equal draw nothing is left but rounding, and a nudge would turn that anywhere.
    first = random_rows(3, torch.zeros(0, D).double(), 7)
    nudged = first + 1e-9 * random_rows(3, first, 8)
    torch.testing.assert_close(random_rows(3, first, 7), random_rows(3, nudged, 7), rtol=0, atol=1e-7)


def test_folding_twice_changes_nothing() -> None:
    linear, rows = torch.nn.Linear(4, 6, dtype=torch.float64), random_rows(2, torch.zeros(0, 6).double(), 0)
    fold_projection(linear, rows)
    once = weights(linear)
    fold_projection(linear, rows)
    assert largest_difference(once, weights(linear)) < 1e-15
    assert (linear(torch.ones(4, dtype=torch.float64)) @ rows.T).abs().max() < 1e-15
