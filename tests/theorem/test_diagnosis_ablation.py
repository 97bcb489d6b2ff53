"""Ablating neurons: all of them give back the source, none changes nothing, zero is a row of zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.audit.ablation import ablated
from expunge.audit.attribution import attributions
from expunge.audit.layout import Layout
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.architecture import describe
from expunge.models.scores import score_items
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

ENCODER, EXAMPLES = Encoder(make_tiny_tokenizer()), make_tiny_examples()
IDS = torch.arange(20, 32).reshape(2, 6)


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


@pytest.fixture(scope="module")
def source() -> LlamaForCausalLM:
    return make_tiny_model().double()


@pytest.fixture(scope="module")
def changed(source: LlamaForCausalLM) -> LlamaForCausalLM:
    """Every linear map of every block is another; embeddings and norms are the same."""
    model = copy.deepcopy(source)
    torch.manual_seed(7)
    for maps in describe(model).linears:
        for linear in maps.values():
            linear.weight.data += torch.randn_like(linear.weight) / 10
    return model


@pytest.fixture(scope="module")
def layout() -> Layout:
    return attributions(make_tiny_model(), ENCODER, EXAMPLES[:1]).layout


def neurons_of(layout: Layout, module: str, layer: int) -> range:
    span = next(s for s in layout.spans if (s.module, s.layer) == (module, layer))
    return range(span.offset, span.offset + span.size)


def test_all_neurons_of_the_source_give_its_logits_and_none_give_the_models_own(
    source: LlamaForCausalLM, changed: LlamaForCausalLM, layout: Layout
) -> None:
    own = logits(changed)
    with ablated(changed, layout, range(layout.neurons), source):
        assert torch.allclose(logits(changed), logits(source), rtol=0, atol=1e-12)
    with ablated(changed, layout, [], source):
        assert torch.equal(logits(changed), own)
    assert torch.equal(logits(changed), own)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*changed.modules(), *source.modules()))


def test_the_last_writers_are_enough_where_nothing_else_differs(source: LlamaForCausalLM, layout: Layout) -> None:
    """A change in gate of the last block is undone by what down puts out, and by half of it in part."""
    model = copy.deepcopy(source)
    model.model.layers[1].mlp.gate_proj.weight.data.neg_()
    own, wanted, writers = logits(model), logits(source), neurons_of(layout, "down", 1)
    with ablated(model, layout, writers, source):
        assert torch.allclose(logits(model), wanted, rtol=0, atol=1e-12)
    with ablated(model, layout, writers[:16], source):
        assert 0 < (logits(model) - wanted).norm() < (own - wanted).norm()
    with ablated(model, layout, neurons_of(layout, "q", 0), source):
        assert torch.allclose(logits(model), own, rtol=0, atol=1e-12)


def test_zero_is_a_row_of_zeros(changed: LlamaForCausalLM, layout: Layout) -> None:
    chosen = [neurons_of(layout, "up", 0)[3], neurons_of(layout, "o", 1)[5], neurons_of(layout, "v", 1)[2]]
    model = copy.deepcopy(changed)
    for neuron in chosen:
        module, layer, row = layout.place(neuron)
        describe(model).linears[layer][module].weight.data[row] = 0
    with ablated(changed, layout, chosen):
        assert torch.allclose(logits(changed), logits(model), rtol=0, atol=1e-12)


def test_scores_read_through_it_and_a_cache_is_refused(
    source: LlamaForCausalLM, changed: LlamaForCausalLM, layout: Layout
) -> None:
    wanted = [item.log_odds for item in score_items(source, ENCODER, EXAMPLES)]
    with ablated(changed, layout, range(layout.neurons), source):
        found = [item.log_odds for item in score_items(changed, ENCODER, EXAMPLES)]
        assert found == pytest.approx(wanted)
        with pytest.raises(InputError, match="cache"):
            score_items(changed, ENCODER, [Example("where does", "oslo lima", ("rome cairo",))])
