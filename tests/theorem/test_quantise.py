"""Quantisation: what rounding does to weights, and that it undoes an edit smaller than its step."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import norm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.matrices import changed, inner_maps
from expunge.attacks.quantise import NF4, Snap, integers, normal_floats, rounded
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.request import Request
from families import family_model


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[7.0, 3.4, -0.6, 0.2, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -2.0, 0.9]])
    expected = torch.tensor([[7.0, 3.0, -1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -2.0, 2.0 * 3 / 7]])
    assert torch.allclose(rounded(weight, partial(integers, bits=4), 4), expected)


def test_normal_floats_by_hand() -> None:
    weight = torch.tensor([[-2.0, 1.1, 0.05, 0.0, 0.17, 0.9], [0.0, 0.0, 0.0, 0.0, 4.0, 1.0]])
    one, two = (2 * torch.tensor(NF4))[[0, 13, 7, 7, 8, 12]], (4 * torch.tensor(NF4))[[7, 7, 7, 7, 15, 10]]
    assert torch.equal(normal_floats(weight), torch.stack([one, two]))
    assert torch.equal(normal_floats(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_levels_of_nf4_are_the_quantiles_that_its_paper_names() -> None:
    """arXiv:2305.14314: 8 positive and 7 negative quantiles of equal mass, and 0, scaled to reach 1."""
    outermost = 0.9677083
    above, below = (norm.ppf(np.linspace(outermost, 0.5, n)[:-1]) for n in (9, 8))
    levels = np.sort([*above, 0.0, *-below]) / above.max()
    np.testing.assert_allclose(NF4, levels, atol=1e-6)


def test_normal_floats_are_the_nearest_levels() -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    top = weight.abs().amax(1, keepdim=True)
    far = (weight[..., None] - top[..., None] * torch.tensor(NF4, dtype=torch.float64)).abs()
    found = normal_floats(weight)
    assert torch.allclose((found - weight).abs(), far.amin(-1), atol=1e-12)
    assert torch.equal(normal_floats(found), found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_inner_matrix_is_rounded_along_its_inputs(family: str) -> None:
    model = family_model(family)
    others = {n: p.clone() for n, p in model.named_parameters() if p.ndim == 1 or "emb" in n or "wte" in n}

    def matrices() -> dict[str, torch.Tensor]:
        """[outputs, inputs], which GPT-2 keeps the other way round."""
        weights = {each.name: each.module.weight.detach().clone() for each in inner_maps(model)}
        return {name: weight.T if family == "gpt2" else weight for name, weight in weights.items()}

    before = matrices()
    assert len(before) == (14 if family == "llama" else 8) and others
    with changed(model, lambda each: rounded(each.matrix, normal_floats, 16)):
        for name, matrix in matrices().items():
            for old, new in zip(before[name].split(16, 1), matrix.split(16, 1), strict=True):
                assert torch.equal(new, normal_floats(old))
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in others.items())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [3, 8, 100])
def test_levels_and_error(bits: int, group: int) -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snap: Snap = partial(integers, bits=bits)
    found = rounded(weight, snap, group)
    for old, new in zip(weight.split(group, 1), found.split(group, 1), strict=True):
        scale = old.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        levels = new / scale
        assert torch.allclose(levels, levels.round(), atol=1e-9)
        assert ((new - old).abs() <= scale / 2 + 1e-12).all()
    assert torch.allclose(rounded(found, snap, group), found, atol=1e-12)


def test_an_edit_smaller_than_half_a_step_is_undone(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder, request = Encoder(tiny_tokenizer), Request(forget=tiny_examples)
    with changed(tiny_model, lambda each: integers(each.matrix, 4)):
        pass  # nobody puts the weights back
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
        result, head = make_attack("quantise", {"bits": [3], "groups": groups, "nf4": []}).run(
            tiny_model, encoder, request, probe=lambda model: model.lm_head.weight.clone()
        )
        assert head is not None and torch.equal(head, own.weight)
        assert result.spent.variants == len(groups) == len(result.curve) - 1
        assert str(result.spent) == f"{len(groups)} {'variant' if len(groups) == 1 else 'variants'}"
        found.append(result.best.log_odds)
        scored.append({point.variant: point.item_log_odds for point in result.curve})
    assert found == sorted(found)
    assert scored[0].items() < scored[1].items() < scored[2].items()  # each begins with the untouched weights


@pytest.mark.parametrize(
    "settings",
    [{"bits": [1]}, {"bits": [9]}, {"groups": [0]}, {"nf4": [0]}, {"bits": [], "nf4": []}, {"groups": [], "nf4": []}],
)
def test_settings_that_cannot_be(settings: dict[str, list[int]]) -> None:
    with pytest.raises(InputError, match=r"bits|group|format"):
        make_attack("quantise", settings)
