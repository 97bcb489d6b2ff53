"""RepSelect: what is collapsed, where the gradient is taken, and that the weights walk along it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import LlamaForCausalLM

from expunge.data.collate import collate
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import describe
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.transforms.adapters import Adapters
from expunge.unlearning.transforms.l2 import L2Penalty
from expunge.unlearning.transforms.maps import LinearMap
from expunge.unlearning.transforms.repselect import RepSelect, collapse
from expunge.unlearning.transforms.sparse import SparsityMask
from families import family_model
from tiny import make_tiny_model
from transform_runs import assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import EXAMPLES, assert_same, largest_difference, make_encoder, weights

RATE = 1e-3


def mlp(names: dict[str, Tensor]) -> set[str]:
    return {name for name in names if ".mlp." in name and name.endswith("weight")}


def collapsed(gradient: np.ndarray, q: int) -> np.ndarray:
    """In closed form: the i-th singular value s_i of the first q becomes s_q^2 / s_i, the others stay."""
    u, s, vt = np.linalg.svd(gradient, full_matrices=False)
    sizes = np.where(np.arange(len(s)) < q, s[q - 1] ** 2 / s, s)
    return np.asarray((u * sizes) @ vt)


@pytest.mark.parametrize("q", [1, 3, 5])
def test_the_first_directions_shrink_by_their_size_on_both_sides(q: int) -> None:
    gradient = np.random.default_rng(0).normal(size=(7, 5)) * [9, 4, 2, 1, 0.1]
    u, s, vh = torch.linalg.svd(torch.tensor(gradient), full_matrices=False)
    got = collapse(torch.tensor(gradient), u[:, :q], s[:q], vh.T[:, :q])
    assert np.abs(got.numpy() - collapsed(gradient, q)).max() < 1e-12
    assert (q == 1) == np.allclose(got.numpy(), gradient)


def test_directions_of_no_size_do_not_blow_up() -> None:
    """A gradient of rank 2 asked for 4 directions is collapsed to its second."""
    draw = np.random.default_rng(0)
    gradient = draw.normal(size=(6, 2)) @ draw.normal(size=(2, 5))
    u, s, vh = torch.linalg.svd(torch.tensor(gradient), full_matrices=False)
    got = collapse(torch.tensor(gradient), u[:, :4], s[:4], vh.T[:, :4])
    assert np.abs(got.numpy() - collapsed(gradient, 2)).max() < 1e-12
    assert not collapse(torch.zeros(6, 5), torch.zeros(6, 2), torch.zeros(2), torch.zeros(5, 2)).any()


def rank(gradient: Tensor) -> int:
    return int(np.linalg.matrix_rank(gradient.numpy()))


def forget_gradient(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """Of the mean log P per token of the five forget facts, in one batch."""
    encoder = make_encoder()
    rows = collate([encoder.encode(e.prompt, e.answer) for e in EXAMPLES[:5]], encoder.pad_id)
    answer_log_probs(model, rows).token.mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def walked(start: dict[str, Tensor], after: dict[str, Tensor], slopes: dict[str, Tensor], steps: int) -> float:
    """Largest difference, relative, between the walk per rate and the collapsed gradients scaled to rms 1."""
    full = {name: collapsed(slopes[name].numpy(), rank(slopes[name])) for name in mlp(start)}
    rms = np.sqrt(np.mean(np.concatenate([x.flatten() for x in full.values()]) ** 2))
    moved = {name: (start[name] - after[name]).numpy() / (steps * RATE) for name in full}
    return float(max(np.abs(moved[n] - full[n] / rms).max() / np.abs(full[n] / rms).max() for n in full))


@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.1, "adam_beta1": 0.99}], ids=["plain", "decay"])
def test_weights_walk_along_the_collapsed_gradient_and_no_other_way(arguments: dict[str, float]) -> None:
    """Without an attacker, with all directions: next to numpy, and whatever the optimizer's settings."""
    model = make_tiny_model().double()
    start, slopes = weights(model), forget_gradient(make_tiny_model().double())
    edit = RepSelect(components=32, attack_epochs=0)
    _, after = transformed(edit, model=model, learning_rate=RATE, max_steps=3, **arguments)
    assert walked(start, after, slopes, steps=3) < 1e-5
    maps = mlp(start)
    assert_same({n: w for n, w in start.items() if n not in maps}, {n: w for n, w in after.items() if n not in maps})


def test_the_gradient_is_taken_where_the_attacker_has_brought_the_model() -> None:
    """One step of a LoRA from B = 0 is an update rate scale^2 G A^T A of the weight itself."""
    model, attacked = make_tiny_model().double(), make_tiny_model().double()
    rate, scale = 0.5, 2.0
    slopes = forget_gradient(make_tiny_model().double())
    maps = [LinearMap(n, 0, attacked, p, transposed=False) for n, p in attacked.named_parameters() if ".mlp." in n]
    inward = Adapters(maps, 4, scale, seed=7).parameters[: len(maps)]
    with torch.no_grad():
        for m, a in zip(maps, inward, strict=True):
            m.weight.add_(rate * scale**2 * slopes[m.name] @ a.T @ a)
    start, there = weights(model), forget_gradient(attacked)
    edit = RepSelect(components=32, attack_rank=4, attack_alpha=4 * scale, attack_rate=rate, seed=7)
    _, after = transformed(edit, model=model, learning_rate=RATE, max_steps=1)
    assert walked(start, after, there, steps=1) < 1e-5
    assert walked(start, after, slopes, steps=1) > 1e-2


def test_the_step_is_as_large_as_the_rate_and_lowers_the_answers() -> None:
    start = transformed(max_steps=0)[1]
    result, after = transformed(RepSelect(), learning_rate=RATE, max_steps=1)
    change = torch.cat([(after[n] - start[n]).flatten() for n in mlp(start)])
    assert float(change.square().mean().sqrt()) == pytest.approx(RATE, rel=1e-6)
    first, last = result.history[0], result.history[-1]
    assert last.forget_probability < first.forget_probability  # type: ignore[operator]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_low_rank_updates(family: str) -> None:
    model = family_model(family).double()
    module = describe(model).linears[0]["up"]
    name = next(n for n, p in model.named_parameters() if p is module.weight)
    adapters = Adapters([LinearMap(name, 0, module, module.weight, transposed=family == "gpt2")], 2, 0.5, seed=0)
    a, b = adapters.parameters
    x = torch.randn(1, 3, a.shape[1], dtype=torch.float64)
    plain = module(x)
    with adapters.active():
        assert torch.equal(module(x), plain)
    adapters.move([torch.zeros_like(a), torch.ones_like(b)], 0.1)
    with adapters.active():
        adapted = module(x)
    assert torch.allclose(adapted - plain, linear(x, 0.5 * b @ a))
    assert torch.equal(module(x), plain)


def test_no_further_than_the_divergence_allows() -> None:
    loose, tight = (RepSelect(max_kl=x) for x in (1e9, 1e-3))
    walked, _ = transformed(loose, learning_rate=RATE, max_steps=6)
    stopped, held = transformed(tight, learning_rate=RATE, max_steps=6)
    kl = [metrics.transform["repselect_kl"] for metrics in walked.history[1:]]
    assert kl[0] == 0.0
    assert kl == sorted(kl)
    over = next(step for step, value in enumerate(kl) if value > 1e-3)
    assert 1 <= over < 5
    free = transformed(RepSelect(), learning_rate=RATE, max_steps=over)[1]
    assert largest_difference(held, free) < 1e-12
    assert stopped.steps == 6


def test_the_divergence_is_that_of_the_start_from_now() -> None:
    """Next to two separate models, on the retain answers of the step after one was made."""
    encoder, model = make_encoder(), make_tiny_model().double()
    result, _ = transformed(RepSelect(max_kl=1e9), learning_rate=RATE, max_steps=2)
    transformed(RepSelect(), model=model, learning_rate=RATE, max_steps=1)
    drawn = [EXAMPLES[5 + i] for i in PairedOrder(5, 3, 8, seed=0).at(1)[1]]
    rows = collate([encoder.encode(e.prompt, e.answer) for e in drawn], encoder.pad_id)
    p, q = (
        m(input_ids=rows.input_ids[:, :-1]).logits[rows.answer_mask[:, 1:]].log_softmax(-1).detach().numpy()
        for m in (make_tiny_model().double(), model)
    )
    expected = (np.exp(p) * (p - q)).sum(-1).mean()
    assert expected > 1e-5
    assert result.history[2].transform["repselect_kl"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("edit", [RepSelect(components=4), RepSelect(max_kl=1e-3)])
def test_resumed_is_straight(edit: RepSelect, tmp_path: Path) -> None:
    assert_resumed_is_straight(edit, tmp_path, learning_rate=RATE)


def test_the_cut_of_a_step_changes_nothing() -> None:
    assert_cut_changes_nothing(RepSelect(components=2), tolerance=1e-7, learning_rate=RATE)


def test_what_cannot_be_edited_is_refused() -> None:
    with pytest.raises(InputError, match="adapters"):
        transformed(RepSelect(), parametrization=LoRA(rank=2), double=False)
    for both in ((RepSelect(), L2Penalty()), (SparsityMask(), RepSelect())):
        with pytest.raises(InputError, match="itself"):
            transformed(*both)
    with pytest.raises(InputError, match="retain"):
        transformed(RepSelect(max_kl=0.01), objective=GradientAscent())
    transformed(RepSelect(), objective=GradientAscent(), max_steps=1)
    for settings in ({"components": 0}, {"attack_epochs": -1}, {"max_kl": float("nan")}):
        with pytest.raises(InputError):
            RepSelect(**settings)  # type: ignore[arg-type]
