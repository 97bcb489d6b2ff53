"""Attribution: invariances, the choice of quantity, the model left as it was, and the file it is kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.attribution import QUANTITIES, Attribution, attributions
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def uneven(tiny_examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """Prompts of many lengths and answers of one to three tokens."""
    return tuple(
        Example("the town in " * i + example.prompt, " ".join([example.answer] * (1 + i % 3)))
        for i, example in enumerate(tiny_examples[:5])
    )


def assert_close(a: Attribution, b: Attribution) -> None:
    assert a.ids == b.ids
    for name in ("positive", "negative", "log_probability"):
        left, right = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.abs(right).max(), err_msg=name)


def test_one_value_per_output_of_every_map(
    tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]
) -> None:
    found = attributions(tiny_model, encoder, uneven)
    layout = found.layout
    assert layout.modules == ("q", "k", "v", "o", "gate", "up", "down")
    assert layout.layers == 2
    assert layout.neurons == 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert found.positive.shape == found.negative.shape == (5, layout.neurons)
    assert found.positive.dtype == found.negative.dtype == np.float32
    assert (found.positive >= found.negative).all()
    assert layout.place(0) == ("q", 0, 0)
    assert layout.place(layout.neurons - 1) == ("down", 1, 31)
    with pytest.raises(IndexError):
        layout.place(layout.neurons)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_and_padding_change_nothing(
    batch_size: int, tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]
) -> None:
    whole = attributions(tiny_model, encoder, uneven, batch_size=8)
    assert_close(attributions(tiny_model, encoder, uneven, batch_size=batch_size), whole)


def test_rows_do_not_mix(tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]) -> None:
    alone = [attributions(tiny_model, encoder, [example]) for example in uneven]
    together = attributions(tiny_model, encoder, uneven)
    for row, one in enumerate(alone):
        scale = np.abs(one.positive).max()
        np.testing.assert_allclose(together.positive[row], one.positive[0], rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(together.negative[row], one.negative[0], rtol=1e-5, atol=1e-5 * scale)


def test_text_after_the_last_predicting_position_does_not_count(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    """A one-token prompt with a one-token answer has one position, so the largest and the smallest A are the same."""
    examples = [Example("where", "oslo"), Example("where does ada live in the", "town")]
    found = attributions(tiny_model, encoder, examples)
    np.testing.assert_array_equal(found.positive[0], found.negative[0])
    assert (found.positive[0] < 0).any()
    assert (found.positive[1] != found.negative[1]).any()


def test_quantities_are_chain_rules_of_one_another(
    tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]
) -> None:
    found = {of: attributions(tiny_model, encoder, uneven, of) for of in QUANTITIES}
    p = found["probability"].probability[:, None]
    base = found["log_probability"]
    np.testing.assert_allclose(found["probability"].positive, base.positive * p, rtol=1e-5)
    np.testing.assert_allclose(found["log_odds"].negative, base.negative / (1 - p), rtol=1e-5)
    np.testing.assert_array_equal(found["log_odds"].in_terms_of("probability").positive, found["probability"].positive)
    with pytest.raises(InputError, match="quantity"):
        base.in_terms_of("loss")


def test_log_odds_are_finite_for_a_certain_answer() -> None:
    factor = QUANTITIES["log_odds"](np.array([0.0, -1e-12, -800.0]))
    assert np.isfinite(factor).all()
    assert factor[2] == 1


def test_the_model_comes_back_as_it_was(
    tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]
) -> None:
    tiny_model.train()
    tiny_model.model.norm.eval()
    tiny_model.model.embed_tokens.weight.requires_grad_(False)
    asking = {name: p.requires_grad for name, p in tiny_model.named_parameters()}
    training = {name: m.training for name, m in tiny_model.named_modules()}
    weights = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    with torch.no_grad():
        attributions(tiny_model, encoder, uneven)
    with pytest.raises(InputError):
        attributions(tiny_model, encoder, [Example("where", "oslo"), Example("where", " ")])
    assert {name: p.requires_grad for name, p in tiny_model.named_parameters()} == asking
    assert {name: m.training for name, m in tiny_model.named_modules()} == training
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in tiny_model.named_parameters())
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_dropout_does_not_draw(encoder: Encoder, uneven: tuple[Example, ...]) -> None:
    model = make_tiny_model(attention_dropout=0.5)
    at_rest = attributions(model, encoder, uneven)
    assert_close(attributions(model.train(), encoder, uneven), at_rest)


def test_a_failing_forward_leaves_no_hook_and_no_frozen_weight(
    tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    handle = tiny_model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        attributions(tiny_model, encoder, uneven)
    handle.remove()
    assert all(p.requires_grad for p in tiny_model.parameters())
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_bad_input_is_named(tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...]) -> None:
    with pytest.raises(InputError, match="Did you mean 'log_odds'"):
        attributions(tiny_model, encoder, uneven, "logodds")
    with pytest.raises(InputError, match="no example"):
        attributions(tiny_model, encoder, [])


def test_file_gives_back_what_was_saved(
    tiny_model: LlamaForCausalLM, encoder: Encoder, uneven: tuple[Example, ...], tmp_path: Path
) -> None:
    found = attributions(tiny_model, encoder, uneven)
    path = tmp_path / "attribution.safetensors"
    found.save(path)
    again = Attribution.load(path)
    assert (again.ids, again.of, again.layout) == (found.ids, found.of, found.layout)
    for name in ("positive", "negative", "log_probability"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_damaged_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "attribution.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"attribution\.safetensors"):
        Attribution.load(path)
