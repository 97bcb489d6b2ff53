"""One pass over all maps gives what captum's LayerGradientXActivation gives map by map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from expunge.audit.attribution import attributions
from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import describe
from tiny import make_tiny_model

SIZES = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.2}


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"max_position_embeddings": 64, "use_cache": False, **SIZES}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": make_tiny_model,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, **SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, **SMALL)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, num_key_value_heads=2, **SMALL)),
}


@pytest.mark.parametrize("family", MODELS)
def test_equals_captum_map_by_map(
    family: str, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    encoder = Encoder(tiny_tokenizer)
    # Rows of three lengths, and one answer of three tokens: padding and the last predicting position both matter.
    examples = [
        tiny_examples[0],
        Example("lima is in the town", "w1 w2 w3"),
        Example("where does bob live in the town ? answer : bob lives in", "rome w5"),
    ]
    found = attributions(model, encoder, examples)
    scale = np.abs(found.positive).max()
    batch = collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)

    def probability(input_ids: torch.Tensor) -> torch.Tensor:
        return answer_log_probs(model, batch).sequence.exp()

    last = [int(row.nonzero().max()) - 1 for row in batch.answer_mask]
    linears = describe(model).linears
    for span in found.layout.spans:
        layer = LayerGradientXActivation(probability, linears[span.layer][span.module])
        expected = layer.attribute(batch.input_ids).detach()
        for row, end in enumerate(last):
            counted = expected[row, : end + 1]
            for ours, theirs in ((found.positive, counted.amax(0)), (found.negative, counted.amin(0))):
                np.testing.assert_allclose(ours[row, span.slice], theirs.numpy(), rtol=1e-4, atol=1e-5 * scale)
