"""A tokenizer, a model and eight facts, small enough to train in a blink."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example

NAMES = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal"]
TOWNS = ["oslo", "lima", "rome", "cairo", "delhi", "quito", "paris", "tunis"]
WORDS = [
    "<pad>",
    "<eos>",
    "<unk>",
    *["where", "does", "live", "?", ":", "question", "answer", "lives", "in", "the", "town"],
]


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the words of `tiny_examples`."""
    words = WORDS + NAMES + TOWNS + [f"w{i}" for i in range(64)]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )


def make_tiny_model(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """A 2-layer Llama of hidden size 32 with grouped-query attention, fp32, eval mode."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def make_tiny_examples() -> tuple[Example, ...]:
    """Eight people and the town each lives in, with two wrong towns."""
    return tuple(
        Example(
            prompt=f"where does {name} live ? answer : {name} lives in",
            answer=town,
            options=(TOWNS[(i + 3) % 8], TOWNS[(i + 5) % 8]),
            subject=name,
        )
        for i, (name, town) in enumerate(zip(NAMES, TOWNS, strict=True))
    )
