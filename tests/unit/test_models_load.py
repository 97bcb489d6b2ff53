"""A good folder loads as it was saved; each kind of bad one gets one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils import logging

from expunge.errors import InputError, ResourceError
from expunge.models.checkpoint import save_pretrained_atomic
from expunge.models.load import load_model
from expunge.models.precision import matmul_precision
from expunge.models.quiet import quiet
from tiny import make_tiny_model


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    save_pretrained_atomic(make_tiny_model(), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_loads_in_the_dtype_asked_for(
    name: str, dtype: torch.dtype, folder: Path, tiny_model: LlamaForCausalLM
) -> None:
    loaded = load_model(folder, dtype=name)
    assert loaded.model.dtype == dtype
    assert torch.equal(loaded.model.lm_head.weight, tiny_model.lm_head.weight.to(dtype))
    assert not loaded.model.training
    assert loaded.model.config.use_cache is False
    assert loaded.tokenizer("ada lives")["input_ids"] == [14, 10]
    assert (loaded.path, loaded.folder, loaded.revision) == (str(folder), folder, None)


def test_hashes_are_computed_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(str(folder))
    first = loaded.hashes
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(first)
    assert loaded.hashes is first


def test_says_nothing_and_restores_what_transformers_says(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == bars


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _masked(folder: Path) -> None:
    settings = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(**settings, intermediate_size=64)).save_pretrained(folder)


def _classifier(folder: Path) -> None:
    LlamaForSequenceClassification(make_tiny_model().config).save_pretrained(folder)


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _foreign_tokenizer(folder: Path) -> None:
    make_tiny_model(vocab_size=40).save_pretrained(folder)


def _remote_code(folder: Path) -> None:
    _edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})


def _biased(folder: Path) -> None:
    make_tiny_model(attention_bias=True).save_pretrained(folder)
    _edit(folder / "config.json", attention_bias=False)


def _quantised(folder: Path) -> None:
    _edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (_pickled, r"pickled \(pytorch_model.bin\).*Only safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "There are no weights"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "The weights cannot be read"),
    "missing tensors": (
        lambda f: _edit(f / "config.json", num_hidden_layers=3),
        "9 tensors .* model.layers.2.input_layernorm",
    ),
    "other shapes": (
        lambda f: _edit(f / "config.json", intermediate_size=48),
        "6 tensors .* model.layers.0.mlp.down_proj",
    ),
    "further blocks": (
        lambda f: _edit(f / "config.json", num_hidden_layers=1),
        "9 tensors have no place .* model.layers.1.input_layernorm",
    ),
    "biases": (_biased, "8 tensors have no place .* model.layers.0.self_attn.k_proj.bias"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json is missing.*save_pretrained"),
    "adapter": (_adapter, r"config.json is missing.*Merge the adapter"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "The config cannot be used"),
    "unknown type": (lambda f: _edit(f / "config.json", model_type="nonsense"), "The config cannot be used.*nonsense"),
    "own code": (_remote_code, "The config cannot be used.*custom code"),
    "masked": (_masked, "not a causal language model but BertForMaskedLM"),
    "classifier": (_classifier, "not a causal language model but LlamaForSequenceClassification"),
    "misspelt size": (
        lambda f: _edit(f / "config.json", hidden_size="x"),
        "The config cannot be used: .*'hidden_size'.* got str",
    ),
    "no heads": (lambda f: _edit(f / "config.json", num_attention_heads=0), "The config cannot be used"),
    "negative depth": (lambda f: _edit(f / "config.json", num_hidden_layers=-1), "the model has -1 blocks"),
    "unknown dtype": (lambda f: _edit(f / "config.json", dtype="banana"), "The config cannot be used: .*banana"),
    "architectures": (lambda f: _edit(f / "config.json", architectures=3), "The config cannot be used"),
    "no words": (lambda f: _edit(f / "config.json", vocab_size=0), "The weights cannot be read"),
    "quantised": (_quantised, "quantised weights cannot be trained.*unquantised"),
    "t5": (lambda f: T5Config().save_pretrained(f), "not a causal language model but t5"),
    "no tokenizer": (_no_tokenizer, "The tokenizer is missing or damaged"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "The tokenizer is missing or damaged"),
    "listed tokenizer": (
        lambda f: (f / "tokenizer_config.json").write_text("[1]"),
        "The tokenizer is missing or damaged",
    ),
    "foreign tokenizer": (_foreign_tokenizer, "knows 94 tokens, the model only 40"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folder(kind: str, folder: Path) -> None:
    spoil, message = BAD[kind]
    with quiet():
        spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_model(folder)
    assert str(folder) in caught.value.where


@pytest.mark.parametrize("path", ["./missing", "/no/such/folder", "a/b/c", "~/nothing here"])
def test_missing_path(path: str) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        load_model(path)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(InputError, match="a folder, this is a file"):
        load_model(folder / "config.json")


def test_hub_ids_are_asked_for_only_if_no_folder_has_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, str | None]]()

    def snapshot(repo: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    loaded = load_model("org/name", revision="abc")
    assert asked == [("org/name", "abc")]
    assert (loaded.path, loaded.folder, loaded.revision) == ("org/name", folder, "abc")
    monkeypatch.chdir(folder.parent)
    assert load_model("model").folder == Path("model")
    assert len(asked) == 1


def test_hub_out_of_reach_or_disk_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="neither a local folder nor a model"):
        load_model("org/name-that-is-not-there")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ResourceError, match="full"):
        load_model("org/name")


def test_unknown_dtype_and_device(folder: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown dtype 'float8'.*float16"):
        load_model(folder, dtype="float8")
    with pytest.raises(InputError, match="device cannot be used"):
        load_model(folder, device="quantum")
    with pytest.raises(InputError, match="meta holds no numbers"):
        load_model(folder, device="meta")
    with pytest.raises(InputError, match="device cannot be used"), matmul_precision("medium", "quantum"):
        load_model(folder, device="quantum")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory"),
        (OSError(28, "No space left on device"), "disk is full"),
    ],
)
def test_out_of_memory_or_disk_is_a_resource_error(
    error: Exception, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("expunge.models.load.AutoModelForCausalLM.from_pretrained", greedy)
    with pytest.raises(ResourceError, match=says):
        load_model(folder)
