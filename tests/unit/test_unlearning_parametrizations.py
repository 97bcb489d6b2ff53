"""Which parameters a parametrization trains."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.errors import InputError
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from tiny import make_tiny_model
from unlearning_runs import Run, weights


def names(layers: Layers, model: LlamaForCausalLM) -> set[str]:
    return {name.removeprefix("model.layers.") for name in layers.bind(model, 0).parameters}


def test_full_trains_everything_and_gives_the_flags_back(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.model.norm.weight.requires_grad_(False)
    trained = Full().bind(tiny_model, 0)
    assert set(trained.parameters) == set(weights(tiny_model))
    assert all(p.requires_grad for p in tiny_model.parameters())
    trained.parameters["model.norm.weight"].grad = torch.ones(32)
    trained.fold()
    assert [name for name, p in tiny_model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    assert all(p.grad is None for p in tiny_model.parameters())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (Layers(("down",), (1,)), {"1.mlp.down_proj.weight"}),
        (Layers(("mlp.down_proj",), (-1,)), {"1.mlp.down_proj.weight"}),
        (Layers(("q", "o")), {f"{i}.self_attn.{m}_proj.weight" for i in (0, 1) for m in "qo"}),
        (Layers(("mlp",), (0,)), {f"0.mlp.{m}_proj.weight" for m in ("gate", "up", "down")}),
        (Layers(("*norm*",), (0,)), {"0.input_layernorm.weight", "0.post_attention_layernorm.weight"}),
        (Layers(("mlp.up_proj.weight", "up"), (0, 0, -2)), {"0.mlp.up_proj.weight"}),
    ],
)
def test_layers_trains_what_it_names(layers: Layers, expected: set[str], tiny_model: LlamaForCausalLM) -> None:
    assert names(layers, tiny_model) == expected
    assert {n.removeprefix("model.layers.") for n, p in tiny_model.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Layers(("down",), (2,)), "no block 2.*0 to 1"),
        (Layers(("down",), (-3,)), "no block -3"),
        (Layers(("downn",)), "called 'downn'.*Did you mean 'down'"),
        (Layers(("mlp.dow_proj",)), "Did you mean 'mlp.down_proj'"),
        (Layers(()), "trains nothing"),
        (LoRA(modules=("upp",)), "no linear map 'upp'.*Did you mean 'up'"),
        (LoRA(layers=(7,)), "no block 7"),
    ],
)
def test_what_is_not_there_is_named(wrong: Layers | LoRA, message: str, tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=message):
        wrong.bind(tiny_model, 0)
    assert all(p.requires_grad for p in tiny_model.parameters())


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": float("inf")}, {"rank": 0}])
def test_lora_checks_its_numbers(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LoRA(**settings)  # type: ignore[arg-type]


def test_without_peft_lora_says_what_to_install(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install peft"):
        LoRA().bind(tiny_model, 0)


@pytest.mark.parametrize("method", ["graddiff", "ssiuu"])
def test_what_is_not_trained_stands_still(method: str) -> None:
    before = weights(make_tiny_model())
    _, model = Run(method, {"parametrization": "layers", "parametrization.modules": ["down"], "layers": [1]}).make()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"model.layers.1.mlp.down_proj.weight"}
    _, model = Run(method, {"parametrization": "lora", "parametrization.modules": ["q"], "layers": [0]}).make()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"model.layers.0.self_attn.q_proj.weight"}
