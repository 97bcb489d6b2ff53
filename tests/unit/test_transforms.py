"""The attribution penalty refuses what it cannot do, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaForCausalLM

from expunge.errors import InputError, InternalError
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.attribution_drops import negative_drop
from expunge.unlearning.transforms.base import BoundTransform, Site
from expunge.unlearning.transforms.maps import trained_linear_maps


def site_of(model: LlamaForCausalLM, containing: str = "") -> Site:
    trained = {name: p for name, p in model.named_parameters() if containing in name}
    return Site(model, SimpleNamespace(blocks=model.model.layers, linears=()), trained, lambda x: x)


def forward(model: LlamaForCausalLM, bound: BoundTransform) -> tuple[Tensor, Tensor]:
    """Sequence log-probabilities [4] of the last two of seven tokens, and all scores [4, 6, vocabulary]."""
    ids = torch.randint(2, 96, (4, 7), generator=torch.Generator().manual_seed(1))
    with bound.watch(4):
        scores = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, ids[:, 1:, None])[:, -2:, 0].sum(1), scores


def test_settings_are_checked_and_frozen() -> None:
    with pytest.raises(InputError, match="strength=-1"):
        AttributionPenalty(strength=-1)
    with pytest.raises(InputError, match="strength=nan"):
        AttributionPenalty(strength=float("nan"))
    with pytest.raises(InputError, match="measure_every=0"):
        AttributionPenalty(measure_every=0)
    with pytest.raises(FrozenInstanceError):
        AttributionPenalty().strength = 1.0  # type: ignore[misc]


def test_maps_are_the_trained_weight_matrices_of_the_blocks(tiny_model: LlamaForCausalLM) -> None:
    maps = trained_linear_maps(site_of(tiny_model))
    assert [m.block for m in maps] == [0] * 7 + [1] * 7
    assert all(m.weight.ndim == 2 and m.name.startswith(f"model.layers.{m.block}.") for m in maps)
    assert [m.name for m in trained_linear_maps(site_of(tiny_model, "1.mlp.up"))] == [
        "model.layers.1.mlp.up_proj.weight"
    ]


@pytest.mark.parametrize("containing", ["norm", "embed", "nothing"])
def test_nothing_to_penalise_is_an_error(tiny_model: LlamaForCausalLM, containing: str) -> None:
    with pytest.raises(InputError, match="no linear map inside the blocks"):
        AttributionPenalty().bind(site_of(tiny_model, containing))


def test_negative_drop_is_masked_by_the_sign_of_a() -> None:
    weight, gradient = torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([-3.0, -3.0, -1.0, 5.0])
    previous, out = torch.tensor([1.0, 1.0, -5.0, 1.0]), torch.empty(4)
    assert negative_drop(weight, gradient, previous, out=out).tolist() == [4.0, 0.0, -3.0, 0.0]
    assert previous.tolist() == [-3.0, 3.0, -2.0, 0.0]


def test_an_objective_with_another_way_to_the_forget_examples_is_refused(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    sequence, scores = forward(tiny_model, bound)
    loss = sequence.sum() + 0.1 * scores.exp().square().sum()
    bound.before_backward(loss, SimpleNamespace(sequence=sequence), last=True)
    with pytest.raises(InputError, match="more than their sequence log-probability"):
        loss.backward()


def test_an_objective_without_the_forget_answers_is_refused(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    sequence, scores = forward(tiny_model, bound)
    with pytest.raises(InputError, match="does not use the log-probability"):
        bound.before_backward(scores.sum(), SimpleNamespace(sequence=sequence), last=True)


def test_a_loss_that_is_not_finite_is_left_to_the_loop(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    sequence, _ = forward(tiny_model, bound)
    assert not torch.isfinite(sequence).any()
    bound.before_backward(sequence.sum(), SimpleNamespace(sequence=sequence), last=True)
    sequence.sum().backward()
    bound.apply()


def test_a_map_that_mixes_examples_is_refused(tiny_model: LlamaForCausalLM) -> None:
    class Flat(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    tiny_model.model.layers[0].mlp.up_proj = Flat(tiny_model.model.layers[0].mlp.up_proj)
    bound = AttributionPenalty().bind(site_of(tiny_model))
    with pytest.raises(InputError, match="keep examples apart"):
        forward(tiny_model, bound)


def test_an_example_that_is_no_longer_pushed_counts_as_vanished(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    sequence, _ = forward(tiny_model, bound)
    weight = tiny_model.model.layers[0].mlp.up_proj.weight
    (g,) = torch.autograd.grad(sequence[[0, 3]].exp().sum(), weight, retain_graph=True)
    loss = (torch.tensor([1.0, 0.0, 1e-30, -2.0]) * sequence).sum()
    bound.before_backward(loss, SimpleNamespace(sequence=sequence), last=True)
    loss.backward()
    bound.apply()
    torch.testing.assert_close(bound.state()["model.layers.0.mlp.up_proj.weight"], weight.detach() * g)


def test_no_hook_is_left_behind(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    sequence, _ = forward(tiny_model, bound)
    loss = sequence.sum()
    bound.before_backward(loss, SimpleNamespace(sequence=sequence), last=True)
    loss.backward()
    bound.apply()
    assert not any(m._forward_hooks for m in tiny_model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in tiny_model.parameters())
    state = {name: x.clone() for name, x in bound.state().items()}
    tiny_model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert all(torch.equal(x, state[name]) for name, x in bound.state().items())


def test_activations_are_freed_while_the_backward_runs(tiny_model: LlamaForCausalLM) -> None:
    first, last = (tiny_model.model.layers[i].mlp.down_proj for i in (0, -1))
    inputs: list[StorageWeakRef] = []
    freed: list[bool] = []
    last.register_forward_hook(lambda module, args, output: inputs.append(StorageWeakRef(args[0].untyped_storage())))
    first.weight.register_post_accumulate_grad_hook(lambda weight: freed.append(inputs[0].expired()))
    bound = AttributionPenalty().bind(site_of(tiny_model))
    sequence, _ = forward(tiny_model, bound)
    loss = sequence.sum()
    bound.before_backward(loss, SimpleNamespace(sequence=sequence), last=True)
    loss.backward()
    assert freed == [True]


def test_the_penalty_is_measured_only_now_and_then(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty(measure_every=3).bind(site_of(tiny_model))
    measured = []
    for _ in range(6):
        sequence, _ = forward(tiny_model, bound)
        bound.before_backward(sequence.sum(), SimpleNamespace(sequence=sequence), last=True)
        sequence.sum().backward()
        measured.append(sorted(bound.apply()))
    names = ["attribution_gradient_ratio", "attribution_penalty"]
    assert measured == [[], names, [], [], names, []]


def test_a_foreign_state_is_refused(tiny_model: LlamaForCausalLM) -> None:
    bound = AttributionPenalty().bind(site_of(tiny_model))
    with pytest.raises(InternalError, match="not one of these weights"):
        bound.load_state({"rides": torch.tensor(True), "steps": torch.tensor(2), "other.weight": torch.zeros(1)})
