"""Quantisation: what rounding does to weights, and that it undoes an edit smaller than its step."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.quantise import quantise, rounded
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.request import Request


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[7.0, 3.4, -0.6, 0.2, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -2.0, 0.9]])
    expected = torch.tensor([[7.0, 3.0, -1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -2.0, 2.0 * 3 / 7]])
    assert torch.allclose(rounded(weight, 4, 4), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [3, 8, 100])
def test_levels_and_error(bits: int, group: int) -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = rounded(weight, bits, group)
    for old, new in zip(weight.split(group, 1), found.split(group, 1), strict=True):
        scale = old.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        levels = new / scale
        assert torch.allclose(levels, levels.round(), atol=1e-9)
        assert ((new - old).abs() <= scale / 2 + 1e-12).all()
    assert torch.allclose(rounded(found, bits, group), found, atol=1e-12)


def test_an_edit_smaller_than_half_a_step_is_undone(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder, request = Encoder(tiny_tokenizer), Request(forget=tiny_examples)
    quantise(tiny_model, 4, 64)
    original, knew = copy.deepcopy(tiny_model.state_dict()), score_items(tiny_model, encoder, tiny_examples)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if name.endswith("proj.weight"):
                top = parameter.abs().amax(1, keepdim=True)  # its group is the row
                signs = torch.randn(parameter.shape, generator=generator).sign()
                parameter += 0.45 * top / 7 * signs * (parameter.abs() < 0.9 * top)
    hidden = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    result, seen = make_attack("quantise", {"bits": [8, 4], "groups": [64]}).run(
        tiny_model, encoder, request, probe=lambda model: copy.deepcopy(model.state_dict())
    )
    four = result.curve[2]
    assert four.variant == "int4, groups of 64"
    assert result.start != summarise(knew)
    told = torch.tensor(four.item_log_odds)
    assert torch.allclose(told, torch.tensor([item.log_odds for item in knew]), atol=1e-3)
    assert all(torch.equal(value, hidden[name]) for name, value in tiny_model.state_dict().items())
    if result.best == four:
        assert seen is not None and all(torch.allclose(seen[name], original[name], atol=1e-6) for name in original)


def test_more_variants_never_find_less_and_the_head_stays(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder, request = Encoder(tiny_tokenizer), Request(forget=tiny_examples)
    found, scored = [], []
    for groups in ([8], [16, 8], [8, 16, 4]):
        own = tiny_model.lm_head
        result, head = make_attack("quantise", {"bits": [3], "groups": groups}).run(
            tiny_model, encoder, request, probe=lambda model: model.lm_head.weight.clone()
        )
        assert head is not None and torch.equal(head, own.weight)
        assert result.spent.variants == len(groups) == len(result.curve) - 1
        assert str(result.spent) == f"{len(groups)} variants"
        found.append(result.best.log_odds)
        scored.append({point.variant: point.item_log_odds for point in result.curve})
    assert found == sorted(found)
    assert scored[0].items() < scored[1].items() < scored[2].items()  # each begins with the untouched weights


@pytest.mark.parametrize("settings", [{"bits": []}, {"bits": [1]}, {"bits": [9]}, {"groups": [0]}, {"groups": []}])
def test_settings_that_cannot_be(settings: dict[str, list[int]]) -> None:
    with pytest.raises(InputError, match=r"bits|group"):
        make_attack("quantise", settings)
