"""Every known family is described right; what is not known is said so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    GPT2Config,
    GraniteConfig,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from expunge.api import attack
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.architecture import FAMILIES, MODULES, base_linear, describe, readout, row_limit, width
from expunge.request import Request
from families import CONFIGS, family_model

IDS = torch.tensor([[5, 9, 13, 40, 2, 7]])


def test_every_family_of_the_table_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_maps_of_the_blocks_are_named_once(family: str) -> None:
    arch = describe(family_model(family))
    assert arch.family == family
    assert len(arch.blocks) == len(arch.linears) == 2
    for block, linears in zip(arch.blocks, arch.linears, strict=True):
        assert {id(m) for m in block.modules() if isinstance(m, nn.Linear | Conv1D)} == set(map(id, linears.values()))
        assert set(linears) <= {*MODULES, "qkv", "gate_up"}
        assert {"o", "up", "down"} & set(linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_named_maps_play_their_part(family: str) -> None:
    """Each map has the width of its role, and the maps that read the same states get the same input."""
    arch = describe(family_model(family))
    linears, seen = arch.linears[0], dict[str, torch.Tensor]()
    hooks = [
        module.register_forward_hook(lambda m, args, out, key=key: seen.update({key: args[0], f"{key}.out": out}))
        for key, module in linears.items()
    ]
    arch.backbone(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    assert all(seen[f"{key}.out"].shape[-1] == width(module) for key, module in linears.items())
    hidden = arch.head.in_features
    assert width(linears["o"]) == width(linears["down"]) == hidden
    attention = [key for key in ("q", "k", "v", "qkv") if key in linears]
    assert all(torch.equal(seen[key], seen[attention[0]]) for key in attention)
    if "gate" in linears:
        assert torch.equal(seen["gate"], seen["up"])
        assert not torch.equal(seen["gate"], seen["q"])


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_and_head_make_the_models_own_logits(family: str) -> None:
    model = family_model(family)
    arch, last = describe(model), list[torch.Tensor]()

    def keep(module: nn.Module, args: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        last[:] = [out if isinstance(out, torch.Tensor) else out[0]]

    arch.blocks[-1].register_forward_hook(keep)
    with torch.no_grad():
        logits = model(IDS).logits
        assert torch.allclose(arch.logits(arch.norm(last[0])), logits, atol=1e-6)


def test_gated_activation_is_on_the_gate() -> None:
    """With a zero gate the MLP says nothing; with a zero up-projection too, but its gradient differs."""
    arch = describe(family_model("llama"))
    mlp = arch.blocks[0].mlp
    x = torch.randn(1, 3, 32)
    out = nn.functional.silu(arch.linears[0]["gate"](x)) * arch.linears[0]["up"](x)
    assert torch.allclose(mlp(x), arch.linears[0]["down"](out))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_injected_adapters_stand_where_the_map_was(family: str) -> None:
    peft = pytest.importorskip("peft")
    model = family_model(family)
    plain = describe(model).linears
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "c_attn", "qkv_proj", "down_proj"],
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
    )
    peft.inject_adapter_in_model(config, model)
    adapted = describe(model).linears
    changed = {key for key in plain[0] if plain[0][key] is not adapted[0][key]}
    assert changed == set(plain[0]) & {"q", "qkv", "down"} - ({"down"} if family == "gpt2" else set())
    for before, after in zip(plain, adapted, strict=True):
        assert all(base_linear(after[key]) is before[key] and width(after[key]) == width(before[key]) for key in before)
    with torch.no_grad():
        read = readout(model)
        assert torch.allclose(read.logits(read.backbone(input_ids=IDS).last_hidden_state), model(IDS).logits, atol=1e-6)


def test_unknown_family_is_named_with_the_known_ones() -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(InputError, match=r"'bloom'.*Known families: gemma, .*qwen3"):
        describe(model)
    hidden = readout(model.eval()).backbone(IDS).last_hidden_state
    assert torch.allclose(readout(model).logits(hidden), model(IDS).logits, atol=1e-5)


def test_unknown_treatment_of_logits_is_refused() -> None:
    config = GraniteConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        logits_scaling=4.0,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    with pytest.raises(InputError, match=r"does something to its logits.*granite"):
        readout(model)
    assert model.training


def test_a_variant_with_parts_elsewhere_is_refused() -> None:
    model = family_model("llama")
    model.model.layers[1].mlp.gate = model.model.layers[1].mlp.gate_proj
    del model.model.layers[1].mlp.gate_proj
    with pytest.raises(InputError, match=r"looked for 'mlp\.gate_proj'"):
        describe(model)


def test_a_map_that_is_not_linear_is_refused() -> None:
    model = family_model("llama")
    model.model.layers[0].mlp.up_proj = nn.Identity()
    with pytest.raises(InputError, match="Identity"):
        describe(model)


def test_a_model_without_head_is_refused() -> None:
    bert = BertModel(
        BertConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    )
    with pytest.raises(InputError, match="no separate head"):
        readout(bert)


@pytest.mark.parametrize(("positions", "longest"), [(1024, 512), (512, 448), (256, 192), (100, 50)])
def test_rows_leave_room_where_positions_are_learned(positions: int, longest: int) -> None:
    """Beyond its last position such a model has no vector to add, and ends in an error of the framework."""
    config = GPT2Config(vocab_size=96, n_embd=8, n_layer=1, n_head=2, n_positions=positions)
    assert row_limit(AutoModelForCausalLM.from_config(config)) == longest
    assert row_limit(family_model("llama")) == 512, "rotations have no last one"


@pytest.mark.parametrize("name", ["relearn-harmful", "prompts", "quantise"])
def test_a_model_of_few_positions_is_attacked_to_the_end(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    far = tuple(replace(e, prompt=f"{'w1 ' * 40}{e.prompt}", id="") for e in tiny_examples)
    effort = {"learning_rates": [1e-3], "max_steps": 2} if name.startswith("relearn") else {}
    result = attack(family_model("gpt2"), tiny_tokenizer, Request(forget=far), name, **effort)
    assert len(result.samples) == len(result.held_out_ids)
