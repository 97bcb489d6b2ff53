"""The knowledge-neuron mask: what it covers keeps its bits, and it covers all but the best neurons."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.errors import InputError
from expunge.models.architecture import base_linear, describe
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.transforms.base_maps import FEED_FORWARD
from expunge.unlearning.transforms.neurons import BoundKnowledgeNeuronMask, KnowledgeNeuronMask, top_share
from expunge.unlearning.transforms.sparse import SparsityMask
from families import family_model
from tiny import make_tiny_model
from transform_runs import assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import EXAMPLES, assert_same, make_encoder, weights

HARD = {"max_steps": 12, "weight_decay": 0.1, "adam_beta1": 0.99, "adam_epsilon": 1e-8, "double": False}


def moved_neurons(model: PreTrainedModel, before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the name of the weight of every feed-forward map, which of its outputs have any number that moved."""
    names = {id(module): name for name, module in model.named_modules()}
    moved: dict[str, Tensor] = {}
    for linears in describe(model).linears:
        for module in (base_linear(m) for kind, m in linears.items() if kind in FEED_FORWARD):
            name = names[id(module)]
            changed = before[f"{name}.weight"] != after[f"{name}.weight"]
            moved[f"{name}.weight"] = changed.any(1 if isinstance(module, torch.nn.Linear) else 0)
            if f"{name}.bias" in before:
                moved[f"{name}.weight"] |= before[f"{name}.bias"] != after[f"{name}.bias"]
    return moved


def naive_scores(model: PreTrainedModel, alpha: float, wrong: dict[int, list[str]]) -> dict[str, Tensor]:
    """Scores by central differences of P, one neuron and position at a time; the first five facts are forgotten."""
    encoder, scores = make_encoder(), {}
    linears = describe(model).linears[1]
    names = {id(module): name for name, module in model.named_modules()}
    for module in (linears[kind] for kind in ("up", "down")):
        total = torch.zeros(module.out_features, dtype=torch.float64)
        for i, example in enumerate(EXAMPLES[:5]):
            right = encoder.encode(example.prompt, example.answer)
            total += influence(model, module, right.ids, right.answer_start)
            for answer in wrong[i]:
                pair = encoder.encode(example.prompt, answer)
                total -= alpha / len(wrong[i]) * influence(model, module, pair.ids, pair.answer_start)
        scores[f"{names[id(module)]}.weight"] = total
    return scores


def influence(model: PreTrainedModel, module: torch.nn.Module, ids: tuple[int, ...], start: int) -> Tensor:
    """max_k h[i,k] dP/dh[i,k], the slope from two forwards of a batch in which each row has one h[i,k] changed."""
    tokens = torch.tensor([ids])
    width, time = module.out_features, len(ids) - 1
    kept: list[Tensor] = []

    def probability(nudge: float) -> Tensor:
        def change(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept.append(output[0])
            return output + nudge * torch.eye(width * time, dtype=output.dtype).view(-1, time, width)

        hook = module.register_forward_hook(change)
        scores = model(input_ids=tokens[:, :-1].expand(width * time, -1)).logits.log_softmax(-1)
        hook.remove()
        return scores.gather(2, tokens[:, 1:, None].expand(width * time, -1, 1))[:, start - 1 :, 0].sum(1).exp()

    slope = (probability(1e-4) - probability(-1e-4)).view(time, width) / 2e-4
    return (kept[0] * slope).amax(0)


def test_scores_are_those_of_finite_differences() -> None:
    """The chosen neurons are the top of scores from central differences, clearly apart from the next one."""
    model, mask = make_tiny_model().double(), KnowledgeNeuronMask(share=0.25, alpha=2.0, mismatches=2, seed=3)
    ids = {make_encoder().encode(e.prompt, e.answer).ids[-1]: e.answer for e in EXAMPLES[:5]}
    wrong = {
        i: [ids[t] for t in random.Random(f"3/{i}").sample(sorted(set(ids) - {own}), 2)] for i, own in enumerate(ids)
    }
    with torch.no_grad():
        scores = naive_scores(model, 2.0, wrong)
    names, before = list(scores), weights(model)
    flat = torch.cat([scores[n] for n in names])
    best = flat.sort(descending=True)
    count = round(0.25 * len(flat))
    assert float(best.values[count - 1] - best.values[count]) > 1e-8
    expected = torch.zeros_like(flat, dtype=torch.bool)
    expected[best.indices[:count]] = True
    parts = Layers(("up", "down"), (1,))
    _, after = transformed(mask, model=model, parametrization=parts, max_steps=2)
    moved = moved_neurons(model, before, after)
    assert torch.equal(torch.cat([moved[n] for n in names]), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_what_is_masked_keeps_its_bits(family: str) -> None:
    """After many steps of AdamW with momentum and decay."""
    model = family_model(family)
    before = weights(model)
    result, after = transformed(KnowledgeNeuronMask(share=0.1), model=model, **HARD)
    moved = moved_neurons(model, before, after)
    free, total = (sum(int(f(mask)) for mask in moved.values()) for f in (torch.sum, torch.numel))
    assert free == round(0.1 * total)
    outside = {n for n in before if n not in moved and n.removesuffix("bias") + "weight" not in moved}
    assert outside
    assert_same({n: before[n] for n in outside}, {n: after[n] for n in outside})
    assert result.steps == 12
    assert 0 < result.history[1].transform["mask_share"] < 0.1


def test_a_mask_of_the_gradient_alone_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decay moves every weight: without the restoring step nearly all neurons would have moved."""
    model = make_tiny_model()
    before = weights(model)
    monkeypatch.setattr("expunge.unlearning.transforms.masks.MaskingTransform.settle", lambda self, rate: None)
    moved = moved_neurons(model, before, transformed(KnowledgeNeuronMask(share=0.1), model=model, **HARD)[1])
    assert sum(int(m.sum()) for m in moved.values()) > 0.5 * sum(m.numel() for m in moved.values())


def test_an_optimizer_that_comes_later_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while someone still holds on to the mask."""
    held: list[BoundKnowledgeNeuronMask] = []
    bind = KnowledgeNeuronMask.bind
    monkeypatch.setattr(KnowledgeNeuronMask, "bind", lambda self, site: held.append(bind(self, site)) or held[0])
    model = make_tiny_model()
    _, after = transformed(KnowledgeNeuronMask(), model=model, **HARD)
    attacker = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    attacker.step()
    assert len(held) == 1
    assert all(bool((p != after[n]).all()) for n, p in model.named_parameters())


def test_the_biases_of_chosen_neurons_move_too() -> None:
    model = family_model("gpt2")
    before = weights(model)
    after = transformed(KnowledgeNeuronMask(share=0.3), model=model, **HARD)[1]
    weight = {n.removesuffix("weight"): before[n] != after[n] for n in before if ".mlp." in n and n.endswith("weight")}
    assert any(changed.any() for changed in weight.values())
    for name, changed in weight.items():
        assert torch.equal(before[f"{name}bias"] != after[f"{name}bias"], changed.any(0))


def test_zeros_of_a_sparse_model_stay() -> None:
    model = make_tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 0.1] = 0
    zero = {name: w == 0 for name, w in weights(model).items()}
    _, after = transformed(SparsityMask(), model=model, **HARD)
    assert any(mask.any() for mask in zero.values())
    assert all(torch.equal(after[name] == 0, mask) for name, mask in zero.items())


def test_the_top_share() -> None:
    scores = torch.tensor([0.1, 3.0, -1.0, 2.0, 0.0])
    assert top_share(scores, 0.4).tolist() == [False, True, False, True, False]
    assert top_share(scores, 0.01).tolist() == [False, True, False, False, False]
    assert top_share(scores, 1.0).all()


@pytest.mark.parametrize("transform", [KnowledgeNeuronMask(share=0.3), SparsityMask()])
def test_resumed_is_straight(transform: Any, tmp_path: Path) -> None:
    assert_resumed_is_straight(transform, tmp_path, weight_decay=0.1)


def test_the_cut_of_a_step_changes_nothing() -> None:
    assert_cut_changes_nothing(KnowledgeNeuronMask(share=0.3))


def test_what_has_no_neurons_is_refused() -> None:
    with pytest.raises(InputError, match="adapters"):
        transformed(KnowledgeNeuronMask(), parametrization=LoRA(rank=2), double=False)
    with pytest.raises(InputError, match="adapters"):  # B begins at 0: nothing of it could move
        transformed(SparsityMask(), parametrization=LoRA(rank=2), double=False)
    with pytest.raises(InputError, match="wanted gate, up, down"):
        transformed(KnowledgeNeuronMask(), parametrization=Layers(("q", "k")))
    for settings in ({"share": 0.0}, {"alpha": -1.0}, {"mismatches": 0}):
        with pytest.raises(InputError):
            KnowledgeNeuronMask(**settings)  # type: ignore[arg-type]
