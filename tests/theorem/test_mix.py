"""Mixing: a point of the line between two models, and how far along it one may go."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.mix import calibrate, mixed
from expunge.attacks.weights import lent
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.models.stored import read_weights
from expunge.request import Request
from lessons import fit, told
from tiny import make_tiny_model


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_weights_are_those_of_the_formula(
    dtype: torch.dtype, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The original counts as it is in the dtype of the model that was made from it, whatever its file's."""
    original, model = make_tiny_model(0).double(), make_tiny_model(1).to(dtype)
    read = read_weights(saved(original, tiny_tokenizer, tmp_path), model)
    theirs, own = (dict(copy.deepcopy(each).to(dtype).named_parameters()) for each in (original, model))
    with lent(model) as weights:
        for share in (0.3, 0.0, 1.0, 0.3):
            with mixed(weights, read, share):
                for name, parameter in model.named_parameters():
                    expected = (1 - share) * theirs[name].double() + share * own[name].double()
                    assert (parameter.double() - expected).abs().max() < (1e-15 if dtype == torch.float64 else 1e-6)
                    if share in (0, 1):
                        assert torch.equal(parameter.double(), expected)


def test_a_half_way_step_back_brings_a_small_edit_back(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_examples: tuple[Example, ...],
    tmp_path: Path,
) -> None:
    encoder, request = Encoder(tiny_tokenizer), Request(forget=tiny_examples)
    fit(tiny_model, encoder, told(tiny_examples), 60)
    path = saved(tiny_model, tiny_tokenizer, tmp_path)
    knew = summarise(score_items(tiny_model, encoder, tiny_examples))
    while summarise(score_items(tiny_model, encoder, tiny_examples)).log_odds > 0:
        fit(tiny_model, encoder, told(tiny_examples), 1, rate=-2e-3)
    attack = make_attack("mix", {"shares": [0.9, 0.5, 0.0]})
    result = attack.run(tiny_model, encoder, request, original=path).result
    assert [point.variant for point in result.curve] == [
        "as it is",
        "90 % unlearned, 10 % original",
        "50 % unlearned, 50 % original",
        "0 % unlearned, 100 % original",
    ]
    levels = [point.log_odds for point in result.curve]
    assert levels == sorted(levels) and levels[0] < 0 < knew.log_odds / 3 < levels[2]
    assert result.curve[-1].log_odds == knew.log_odds
    assert attack.control_only and not make_attack("quantise").control_only


def test_without_an_original_it_says_what_it_needs(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    with pytest.raises(InputError, match="before unlearning"):
        make_attack("mix").run(tiny_model, Encoder(tiny_tokenizer), Request(forget=tiny_examples))


@pytest.mark.parametrize("edge", [0.03, 0.5, 0.777])
def test_calibration_finds_the_largest_share_that_keeps_enough(
    edge: float, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The score is 1 at the original, falls along the line, and passes 0.9 at `edge`."""
    original, model = make_tiny_model(0), make_tiny_model(1)
    start, end = (each.model.norm.weight.detach().clone() for each in (original, model))
    end[0] = start[0] + 1
    with torch.no_grad():
        model.model.norm.weight.copy_(end)
    path, before = saved(original, tiny_tokenizer, tmp_path), copy.deepcopy(model.state_dict())

    def score(mixed_model: PreTrainedModel) -> float:
        share = float(mixed_model.get_parameter("model.norm.weight").detach()[0] - start[0])
        return 1 - 0.1 * share / edge

    found = calibrate(model, path, score, precision=0.01)
    assert edge - 0.01 <= found <= edge + 1e-6
    assert calibrate(model, path, lambda _: 1.0) == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="positive"):
        calibrate(model, path, lambda _: -1.0)
    with pytest.raises(InputError, match="between 0 and 1"):
        calibrate(model, path, score, keep=1.5)


@pytest.mark.parametrize("shares", [[], [1.0], [-0.1]])
def test_settings_that_cannot_be(shares: list[float]) -> None:
    with pytest.raises(InputError, match="Shares"):
        make_attack("mix", {"shares": shares})
