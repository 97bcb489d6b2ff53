"""Streamed statistics equal those of all states at once, and a known subspace is found in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.data.collate import Encoded, collate
from expunge.models.architecture import base_linear, describe
from expunge.unlearning.parametrizations.states import LONE, Pool, lone_tokens, output_moments, pooled
from expunge.unlearning.parametrizations.subspace import (
    Moments,
    concept_direction,
    initial_directions,
    leading,
    massive_directions,
    outside_directions,
    outside_share,
    project,
    row_space,
)
from tiny import make_tiny_model

D = 12


def draw(n: int, basis: Tensor, seed: int) -> Tensor:
    """States in the span of `basis`."""
    return torch.randn(n, len(basis), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ basis


def moments(states: Tensor, pieces: int = 1) -> Moments:
    found = Moments(states, states.shape[1])
    for piece in states.chunk(pieces):
        found.add(piece)
    return found


def cosine(rows: Tensor, others: Tensor) -> float:
    """The cosine of the largest angle between two spans of one dimension."""
    assert rows.shape == others.shape
    return float(torch.linalg.svdvals(rows @ others.T).min())


@pytest.fixture
def axes() -> Tensor:
    """A random orthonormal basis of the whole space."""
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q.T


@pytest.mark.parametrize("pieces", [1, 3, 17])
def test_streamed_is_batch(pieces: int) -> None:
    states = draw(17, torch.eye(D, dtype=torch.float64), 0)
    found, rows = moments(states, pieces), states.numpy()
    assert found.count == 17
    np.testing.assert_allclose(found.total, rows.sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.second, rows.T @ rows, rtol=1e-12)


def test_sums_of_small_dtypes_are_fp32() -> None:
    states = torch.full((3000, 2), 1.0, dtype=torch.bfloat16)
    assert moments(states, 3000).second.tolist() == [[3000.0, 3000.0], [3000.0, 3000.0]]


@pytest.mark.parametrize(("init", "own"), [("paper", slice(3, 5)), ("code", slice(5, 8))])
def test_known_subspaces_are_recovered(init: str, own: slice, axes: Tensor) -> None:
    """Axes 0 to 2 are shared, 3 and 4 are the forget states' own, 5 to 7 the retain states' own; and a little noise."""
    noise = 0.01 * axes
    forget = draw(200, axes[:5], 0) + draw(200, noise, 1)
    retain = draw(300, axes[[0, 1, 2, 5, 6, 7]], 2) + draw(300, noise, 3)
    rank = own.stop - own.start
    given = (moments(forget), moments(retain), 0.99, rank)
    rows = initial_directions(init, *given, axes[:0])  # type: ignore[arg-type]
    assert cosine(rows, axes[own]) > 0.99
    spared = axes[own][:1]
    rows = initial_directions(init, *given, spared)  # type: ignore[arg-type]
    assert cosine(rows[: rank - 1], axes[own][1:]) > 0.99 and (rows @ spared.T).abs().max() < 1e-9


def test_what_tells_the_labels_apart_outside_what_is_spared(axes: Tensor) -> None:
    """The means differ along two axes, one of them spared."""
    forget = draw(400, 0.1 * axes, 0) + axes[0] + axes[1]
    rows = initial_directions("leace", moments(forget), moments(draw(400, 0.1 * axes, 1)), 0.99, 1, axes[:1])
    assert (rows @ axes[0]).abs().max() < 1e-9 and cosine(rows, axes[1:2]) > 0.99


def test_states_of_unit_length_count_alike() -> None:
    states = draw(9, torch.eye(D, dtype=torch.float64), 0)
    found, rows = Moments(states, D, unit=True), (states / states.norm(dim=1, keepdim=True)).numpy()
    found.add(1000 * states[:4])
    found.add(states[4:])
    np.testing.assert_allclose(found.second, rows.T @ rows, rtol=1e-9, atol=1e-12)


def test_directions_are_singular_vectors_of_all_rows() -> None:
    """Against numpy on U - U V V^T itself, with V cut by energy in the singular values of R itself."""
    everything = torch.eye(D, dtype=torch.float64) * torch.linspace(3, 0.3, D, dtype=torch.float64)
    forget, retain = draw(40, everything, 0), draw(30, everything, 1)
    _, values, rows = np.linalg.svd(retain.numpy())
    held = np.cumsum(values**2) / np.sum(values**2)
    kept = rows[: int(np.argmax(held >= 0.8)) + 1]
    basis = leading(moments(retain).second, 0.8)
    assert 1 < len(basis) == len(kept) < D
    rest = forget.numpy() @ (np.eye(D) - kept.T @ kept)
    expected = np.linalg.svd(rest)[2][:3]
    found = outside_directions(moments(forget).second, basis, 3).numpy()
    np.testing.assert_allclose(np.abs(found @ expected.T), np.eye(3), atol=1e-8)
    share = outside_share(moments(forget).second, basis)
    assert share == pytest.approx(np.sum(rest**2) / np.sum(forget.numpy() ** 2))


def test_no_direction_is_made_up(axes: Tensor) -> None:
    """Two directions outside are two rows, whatever the rank; within the retain subspace there is none."""
    retain = moments(draw(100, axes[:4], 0).float())
    basis = leading(retain.second, 0.999)
    assert len(outside_directions(moments(draw(100, axes[:6], 1).float()).second, basis, 5)) == 2
    assert len(outside_directions(moments(draw(100, axes[1:3], 1).float()).second, basis, 5)) == 0
    assert len(leading(retain.second, 0.0)) == len(leading(Moments(axes, D).second, 0.9)) == 0


def test_without_leace_s_direction_no_linear_predictor_is_better_than_the_mean() -> None:
    forget = draw(50, torch.eye(D, dtype=torch.float64), 0) + torch.arange(D)
    retain = draw(70, torch.eye(D, dtype=torch.float64), 1)
    rows = concept_direction(moments(forget), moments(retain))
    assert rows.shape == (1, D)
    states = torch.cat([forget, retain])
    label = torch.cat([torch.ones(50), torch.zeros(70)]).double()

    def explained(x: Tensor) -> float:
        """R^2 of least squares with an intercept."""
        design = np.column_stack([x.numpy(), np.ones(len(x))])
        fitted = design @ np.linalg.lstsq(design, label.numpy(), rcond=1e-10)[0]
        return float(1 - np.sum((label.numpy() - fitted) ** 2) / np.sum((label.numpy() - label.numpy().mean()) ** 2))

    assert explained(states) > 0.5
    assert explained(project(states, rows)) == pytest.approx(0, abs=1e-9)
    assert len(concept_direction(moments(forget), moments(forget))) == 0
    assert len(concept_direction(moments(forget), Moments(forget, D))) == 0


def test_row_space_of_zero_and_repeated_rows_holds_what_is_there(axes: Tensor) -> None:
    rows = row_space(torch.stack([axes[0], 0 * axes[0], 2 * axes[0], axes[1] + axes[0]]))
    assert cosine(rows, axes[:2]) == pytest.approx(1)
    assert row_space(torch.zeros(0, D)).shape == row_space(torch.zeros(2, D)).shape == (0, D)


def outputs(model: nn.Module, maps: dict[int, nn.Module], ids: tuple[int, ...]) -> dict[int, Tensor]:
    """What each map gives for one sequence."""
    seen: dict[int, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, args, out, block=block: seen.update({block: out}))
        for block, module in maps.items()
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


ITEMS = [Encoded((1, 40, 41, 42, 43), 3), Encoded((1, 44, 45), 2), Encoded((1, 46, 2, 47, 48, 49, 50), 1)]


@pytest.mark.parametrize(
    ("pool", "chosen"),
    [
        ("answer", [[2, 3], [1], [1, 2, 3, 4, 5]]),
        ("content", [[1, 2, 3, 4], [1, 2], [1, 3, 4, 5, 6]]),
        ("first", [[0], [0], [0]]),
    ],
)
def test_positions_are_those_of_the_pool_never_the_first_or_padding(pool: Any, chosen: list[list[int]]) -> None:
    """Items of 2, 1 and 6 answer tokens; token 2 is a special one in the middle of the last prompt."""
    mask = pooled(collate(ITEMS, pad_id=0), pool, frozenset({0, 1, 2}))
    assert [row.nonzero()[:, 0].tolist() for row in mask] == chosen


@pytest.mark.parametrize("pool", ["answer", "content"])
@pytest.mark.parametrize("rows", [1, 3])
def test_moments_of_a_model_are_those_of_its_states(pool: Pool, rows: int) -> None:
    """However the items are batched; earlier rows are removed before the next block sees the states."""
    model = make_tiny_model().double()
    arch = describe(model)
    maps = {block: base_linear(arch.linears[block]["down"]) for block in (0, 1)}
    gone = row_space(torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    removed = {0: gone, 1: gone[:0]}
    batches = [collate(ITEMS[i : i + rows], pad_id=0) for i in range(0, 3, rows)]
    found = output_moments(arch, maps, 32, pool, frozenset({0, 1, 2}), removed, batches)

    down = model.get_submodule("model.layers.0.mlp.down_proj").weight
    down.data -= gone.T @ gone @ down.data
    states: dict[int, list[Tensor]] = {0: [], 1: []}
    for item in ITEMS:
        mask = pooled(collate([item], pad_id=0), pool, frozenset({0, 1, 2}))
        for block, out in outputs(model, maps, item.ids).items():
            states[block].append(out[mask])
    for block, pieces in states.items():
        expected = torch.cat(pieces)
        assert found[block].count == len(expected)
        torch.testing.assert_close(found[block].total, expected.sum(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[block].second, expected.T @ expected, rtol=1e-9, atol=1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_massive_directions_are_those_along_which_a_token_alone_outgrows_ordinary_states() -> None:
    draw = torch.Generator().manual_seed(0)
    plants, noise = row_space(torch.randn(2, 16, generator=draw)), torch.randn(64, 16, generator=draw)
    ordinary, lone = Moments(noise, 16), Moments(noise, 16)
    ordinary.add(noise)
    lone.add(noise + 300 * plants[0] + torch.where(torch.arange(64) % 2 == 0, 20.0, -20.0)[:, None] * plants[1])
    found = massive_directions(lone, ordinary)
    assert found.shape == (2, 16) and (project(plants.double(), found).norm(dim=1) < 0.05).all()
    assert len(massive_directions(ordinary, ordinary)) == 0


def test_lone_tokens_are_texts_of_one_token_and_always_the_same() -> None:
    batch = lone_tokens(49)
    assert batch.input_ids.shape == (LONE, 1) and 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < 49
    assert torch.equal(batch.input_ids, lone_tokens(49).input_ids)
    assert pooled(batch, "first", frozenset(range(49))).all()
