"""Logit lens: the last layer is the model's own choice, the norm is applied once, and the contrasts are fair."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.logit_lens import _contrast, logit_lens
from expunge.data.collate import Encoder
from expunge.data.example import Example
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


def one_option(examples: tuple[Example, ...]) -> list[Example]:
    return [Example(e.prompt, e.answer, options=e.options[:1]) for e in examples]


def first_token_margin(model: LlamaForCausalLM, encoder: Encoder, example: Example, layer: int) -> float:
    """Gold minus distractor, by the model's own output for the last layer and by hidden_states below it."""
    gold, wrong = (encoder.encode(example.prompt, answer) for answer in (example.answer, example.options[0]))
    ids = torch.tensor([gold.ids[: gold.answer_start]])
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
        hidden = out.hidden_states[layer + 1]
        last = layer + 1 == len(out.hidden_states) - 1
        logits = out.logits if last else model.lm_head(model.model.norm(hidden))
    return float(logits[0, -1, gold.ids[gold.answer_start]] - logits[0, -1, wrong.ids[wrong.answer_start]])


def test_every_layer_is_the_models_own_comparison(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    examples = one_option(tiny_examples)
    seen = set()
    for seed in range(6):
        model = make_tiny_model(seed, num_hidden_layers=3)
        # A norm with uneven weights turns the comparison when it is applied twice.
        torch.nn.init.normal_(model.model.norm.weight)
        expected = [sum(first_token_margin(model, encoder, e, layer) > 0 for e in examples) / 8 for layer in range(3)]
        assert list(logit_lens(model, encoder, examples)) == expected
        seen.update(expected)
    assert len(seen) > 3


def test_answers_that_begin_alike_are_compared_where_they_part(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    shared, plain = Example("where", "w1 w2 oslo", options=("w1 w2 rome",)), Example("where w1 w2", "oslo", ("rome",))
    assert logit_lens(tiny_model, encoder, [shared]) == logit_lens(tiny_model, encoder, [plain])
    assert logit_lens(tiny_model, encoder, [Example("where", "w1", options=("w1 w2",))]) == ()


def test_prompts_that_are_cut_elsewhere_are_not_what_is_compared(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """A token in front, and answers of two lengths: two prompts cut to one length part right after that token."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    front = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = front
    encoder = Encoder(tokenizer, max_length=16)
    prompt = " ".join(f"w{i}" for i in range(40))
    assert _contrast(encoder, Example(prompt, "oslo", ("lima in the town",)), (), 0) is None
    found = _contrast(encoder, Example(prompt, "oslo", ("lima",)), (), 0)
    assert found is not None and len(found.context) == 15


def test_other_answers_serve_where_there_are_no_options(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    bare = [Example(e.prompt, e.answer) for e in tiny_examples]
    assert len(logit_lens(tiny_model, encoder, bare)) == 2
    assert logit_lens(tiny_model, encoder, bare[:1]) == ()


def test_the_seed_chooses_the_wrong_answers_and_batches_do_not(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    examples = [Example("so " * i + e.prompt, e.answer, e.options) for i, e in enumerate(tiny_examples)]
    whole = logit_lens(tiny_model, encoder, examples)
    assert logit_lens(tiny_model, encoder, examples, batch_size=3) == whole
    assert logit_lens(tiny_model, encoder, examples[::-1]) == whole
    assert len({logit_lens(tiny_model, encoder, examples, seed) for seed in range(8)}) > 1


def test_ignorance_is_one_half(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    torch.nn.init.zeros_(tiny_model.model.norm.weight)
    assert logit_lens(tiny_model, encoder, tiny_examples) == (0.5, 0.5)


def test_no_hook_is_left(tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    logit_lens(tiny_model, encoder, tiny_examples)
    assert not any(m._forward_hooks for m in tiny_model.modules())
