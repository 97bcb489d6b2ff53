"""One randomly initialised tiny model per known family, all with the vocabulary of `tiny_tokenizer`."""

from __future__ import annotations

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

_COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.2}
_SMALL = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=8),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "gemma": GemmaConfig(**_GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**_GROUPED, head_dim=8, sliding_window=8, final_logit_softcapping=2.0),
    "gemma3_text": Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=8),
    "phi": PhiConfig(**_GROUPED),
    "phi3": Phi3Config(**_GROUPED),
    "gpt_neox": GPTNeoXConfig(**_SMALL),
    "gpt2": GPT2Config(**_COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def family_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A fresh model of `family`, fp32, eval mode, with biases that are not zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
