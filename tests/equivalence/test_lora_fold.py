"""Folding a parametrization back changes the model's class and shape not at all, and its logits only by rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from expunge.unlearning.parametrizations.lora import LoRA
from tiny import make_tiny_model

IDS = torch.arange(3, 15).view(2, 6)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, bos_token_id=1, eos_token_id=1, **sizes)).eval()


@pytest.mark.parametrize("make", [make_tiny_model, gpt2])
@pytest.mark.parametrize("lora", [LoRA(rank=4, alpha=3.0), LoRA(modules=("o", "down"), layers=(-1,))])
@torch.no_grad()
def test_folded_is_hooked(make: type, lora: LoRA, tmp_path: Path) -> None:
    model: PreTrainedModel = make()
    kind, attributes = type(model), set(vars(model))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    modules = {name: type(module) for name, module in model.named_modules()}
    plain = model(IDS).logits
    trained = lora.bind(model, seed=0)
    assert torch.equal(model(IDS).logits, plain)  # B = 0
    for parameter in trained.parameters.values():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    hooked = model(IDS).logits
    trained.fold()
    folded = model(IDS).logits
    assert (hooked - plain).abs().max() > 0.1
    assert torch.allclose(folded, hooked, rtol=1e-5, atol=1e-5)
    assert type(model) is kind
    assert set(vars(model)) == attributes
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert {name: type(module) for name, module in model.named_modules()} == modules
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    assert torch.equal(read(IDS).logits, folded)


@torch.no_grad()
def test_the_update_is_its_formula() -> None:
    model = make_tiny_model()
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
    before = weight.clone()
    trained = LoRA(rank=4, alpha=6.0, modules=("down",), layers=(1,)).bind(model, seed=0)
    a, b = (next(p for name, p in trained.parameters.items() if f"lora_{x}" in name) for x in "AB")
    b.normal_()
    trained.fold()
    assert a.shape[0] == b.shape[1] == 4
    assert torch.allclose(weight, before + 6.0 / 4 * b @ a, atol=1e-5)


def test_only_adapters_are_trained_and_the_draw_is_the_seed_s() -> None:
    draws = []
    for seed in (0, 0, 1):
        model = make_tiny_model()
        state = torch.get_rng_state()
        trained = LoRA(rank=2).bind(model, seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained.parameters)
        assert len(trained.parameters) == 2 * 7 * 2
        draws.append(torch.cat([p.detach().flatten() for p in trained.parameters.values()]))
        trained.fold()
        assert all(p.requires_grad for p in model.parameters())
        assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), nn.Linear)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
