"""Rounding by bitsandbytes: what is handed to it and taken back, and how its absence is told.

A stand-in does what the library is documented to do; the last test asks the library itself.
"""

from __future__ import annotations

import copy
import sys
from functools import partial

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bitsandbytes_stand_in import stand_in_for_bitsandbytes
from expunge.attacks import make_attack
from expunge.attacks.matrices import inner_maps
from expunge.attacks.quantise import integers, normal_floats, rounded
from expunge.attacks.quantise_bnb import Format, round_trip
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items
from expunge.request import Request
from families import family_model


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_bitsandbytes(monkeypatch)


def agrees_with_our_own() -> None:
    """NF4 in blocks of 64 and int8 of whole rows are formats that `quantise` has too."""
    weight = 0.02 * torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        given = weight.to(dtype)
        ours = rounded(given.float(), normal_floats, 64)
        assert torch.allclose(round_trip(given, "nf4").float(), ours, atol=1e-6)
        half = given.half().float()
        assert torch.allclose(
            round_trip(given, "int8").float(), rounded(half, partial(integers, bits=8), 128), atol=3e-6
        )
        step = given.float().abs().amax() / 3  # the widest gap of FP4 is a third of its largest value
        assert (round_trip(given, "fp4").float() - given.float()).abs().max() <= step / 2 + 1e-6


@pytest.mark.usefixtures("stand_in")
def test_what_comes_back_is_what_the_formats_say() -> None:
    agrees_with_our_own()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_format_is_one_trial_on_all_inner_matrices(
    family: str, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    model, encoder, request = family_model(family), Encoder(tiny_tokenizer), Request(tiny_examples)
    formats: tuple[Format, ...] = ("nf4", "int8", "fp4")
    result = make_attack("quantise-bnb", {"formats": formats}).run(model, encoder, request).result
    assert [point.variant for point in result.curve] == ["as it is", *(f"bitsandbytes {form}" for form in formats)]
    assert result.spent.variants == 3
    for form, point in zip(formats, result.curve[1:], strict=True):
        rounded_model = copy.deepcopy(model)
        with torch.no_grad():
            for each in inner_maps(rounded_model):
                each.matrix.copy_(round_trip(each.matrix, form))
        told = tuple(item.log_odds for item in score_items(rounded_model, encoder, tiny_examples))
        assert point.item_log_odds == told != result.curve[0].item_log_odds


def test_without_the_library_it_says_how_to_get_it(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_examples: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    with pytest.raises(InputError, match=r"pip install bitsandbytes"):
        make_attack("quantise-bnb").run(tiny_model, Encoder(tiny_tokenizer), Request(tiny_examples))


@pytest.mark.parametrize("formats", [[], ["int4"]])
def test_settings_that_cannot_be(formats: list[str]) -> None:
    with pytest.raises(InputError, match="formats"):
        make_attack("quantise-bnb", {"formats": formats})


def test_the_library_itself_agrees_with_our_own() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional dependency")
    agrees_with_our_own()
