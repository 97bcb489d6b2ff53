"""Perplexity and KL divergence on plain text: their definitions, in blocks of any size."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from expunge.data.collate import Encoder
from expunge.errors import InputError
from expunge.models import answers as answers_module
from expunge.models.answers import cache_reference, cache_text, text_statistics
from tiny import make_tiny_model

TEXTS = ("ada lives in oslo", "the town", "bob lives in the town lima ? eve lives in the town delhi", "w1 w2 w3 w4 w5")


@pytest.fixture
def encoder(tiny_tokenizer) -> Encoder:  # type: ignore[no-untyped-def]
    return Encoder(tiny_tokenizer)


def plain(model: torch.nn.Module, before: torch.nn.Module, encoder: Encoder) -> tuple[float, float, int]:
    """NLL and KL per token from full logits of one text at a time, in float64."""
    nll, kl, tokens = 0.0, 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([encoder.encode_text(text).ids])
        p, q = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (before, model))
        nll -= q.gather(1, ids[0, 1:, None]).sum().item()
        kl += (p.exp() * (p - q)).sum().item()
        tokens += ids.shape[1] - 1
    return nll / tokens, kl / tokens, tokens


@pytest.mark.parametrize("budget", [16 * 96, 64 << 20])
def test_equals_the_definitions(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(answers_module, "LOGITS_BYTES", budget)
    model = make_tiny_model(0)
    before = copy.deepcopy(model)
    reference = cache_text(model, encoder, TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        nll, kl, tokens = plain(model, before, encoder)
    found = text_statistics(model, encoder, TEXTS, reference)
    assert found.tokens == tokens
    assert math.isclose(found.nll, nll, rel_tol=1e-5)
    assert math.isclose(found.perplexity, math.exp(nll), rel_tol=1e-4)
    assert found.kl is not None
    assert kl > 0.01
    assert math.isclose(found.kl, kl, rel_tol=1e-3)


def test_an_unchanged_model_diverges_by_nothing(encoder: Encoder) -> None:
    model = make_tiny_model()
    assert text_statistics(model, encoder, TEXTS, cache_text(model, encoder, TEXTS)).kl == 0.0
    assert text_statistics(model, encoder, TEXTS).kl is None


def test_only_small_blocks_of_logits_are_made(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_tiny_model(), list[int]()
    monkeypatch.setattr(answers_module, "LOGITS_BYTES", 5 * 4 * 96)
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    text_statistics(model, encoder, TEXTS)
    assert max(rows) == 5
    assert sum(rows) == sum(len(encoder.encode_text(text).ids) - 1 for text in TEXTS)


def test_nothing_to_measure_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="no text"):
        text_statistics(make_tiny_model(), encoder, ())


def test_a_reference_without_states_or_with_gaps_is_an_error(encoder: Encoder) -> None:
    model = make_tiny_model()
    reference = cache_reference(model, answers_module.length_sorted([encoder.encode_text(TEXTS[0])], 0, 1))
    with pytest.raises(InputError, match="keep_hidden"):
        reference.logits(torch.zeros(1, 32))
    with pytest.raises(InputError, match="every item"):
        cache_reference(model, [answers_module.collate([encoder.encode_text(TEXTS[0])], 0, [3])])
