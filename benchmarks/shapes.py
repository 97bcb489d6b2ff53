"""The two models on which everything is measured, and the facts that they are given."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge.data.benchmarks import world_facts
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.load import load_model
from expunge.models.smollm import fetch_smollm2
from measure import Settings

PEERS_WORDS = 2048
PEERS_TOKENS = (25, 49)
"""Shortest and longest sequence of the peers' shape; the mean is 37."""


def smollm2(settings: Settings) -> tuple[PreTrainedModel, Encoder]:
    """SmolLM2-135M-Instruct in fp32, and its encoder."""
    loaded = load_model(settings.model or fetch_smollm2())
    return loaded.model, Encoder(loaded.tokenizer)


def demo_facts() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The demo's 24 capitals to forget, and as many to retain."""
    request = world_facts.build()
    return request.forget, request.retain[: len(request.forget)]


def peers_model() -> LlamaForCausalLM:
    """A random 2-layer Llama of hidden size 256 with 2.63 M parameters (2,630,912), fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PEERS_WORDS,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def peers_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word w0, w1, ..."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(PEERS_WORDS - 3)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )


def peers_facts(count: int, answer_share: float, seed: int) -> tuple[Example, ...]:
    """Random words, 37 on the mean, of which this share is the answer."""
    draw, facts = random.Random(seed), []
    for number in range(count):
        length = PEERS_TOKENS[0] + number * (PEERS_TOKENS[1] - PEERS_TOKENS[0]) // (count - 1)
        words = [f"w{draw.randrange(PEERS_WORDS - 3)}" for _ in range(length)]
        cut = round(length * (1 - answer_share))
        facts.append(Example(" ".join(words[:cut]), " ".join(words[cut:])))
    return tuple(facts)


def save_peers(folder: Path | str) -> None:
    """The peers' model and tokenizer as an ordinary checkpoint."""
    peers_model().save_pretrained(folder)
    peers_tokenizer().save_pretrained(folder)
