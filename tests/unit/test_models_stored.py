"""Weights read one by one from disk are those that the model loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from expunge.errors import InputError
from expunge.models import stored
from expunge.models.load import load_model
from expunge.models.projections import FILE, save_rows
from expunge.models.stored import read_weights
from families import family_model
from tiny import make_tiny_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_as_loaded(
    family: str, size: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    family_model(family).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=size)
    tiny_tokenizer.save_pretrained(tmp_path)
    save_rows(tmp_path / FILE, {0: torch.eye(2, 32)})
    assert (tmp_path / "model.safetensors.index.json").is_file() == (size == "20KB")
    loaded = load_model(tmp_path, dtype="bfloat16").model
    monkeypatch.setattr(stored, "load_model", None)  # the files alone must do
    read = read_weights(tmp_path, family_model(family, 1))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(read(name), parameter) and read(name).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_other_names_in_the_files_need_the_whole_model(
    family: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The head of GPT-NeoX is stored under its old name; GPT-2 on the Hub has no `transformer.` before its names."""
    model = family_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    read = read_weights(tmp_path, family_model(family, 1))
    assert not set(dict(model.named_parameters())) <= set(tensors)
    assert all(torch.equal(read(name), value) for name, value in model.named_parameters())


def test_a_head_of_its_own_is_compared_with_a_tied_one(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_tiny_model()
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    read = read_weights(tmp_path, make_tiny_model(1, tie_word_embeddings=False))
    assert torch.equal(read("lm_head.weight"), model.model.embed_tokens.weight)


def test_an_absent_bias_is_zero_and_an_absent_or_other_matrix_is_told(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    make_tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    read = read_weights(tmp_path, make_tiny_model(mlp_bias=True))
    assert torch.equal(read("model.layers.1.mlp.down_proj.bias"), torch.zeros(32))
    narrow = read_weights(tmp_path, make_tiny_model(intermediate_size=48))
    assert narrow("model.norm.weight").shape == (32,)
    with pytest.raises(InputError, match=r"gate_proj.weight \[48, 32\]"):
        narrow("model.layers.0.mlp.gate_proj.weight")
    with pytest.raises(InputError, match=r"layers\.2\."):
        read_weights(tmp_path, make_tiny_model(num_hidden_layers=3))("model.layers.2.mlp.gate_proj.weight")
    with pytest.raises(InputError, match="no such model"):
        read_weights(tmp_path / "nowhere", make_tiny_model())
