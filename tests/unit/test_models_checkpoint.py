"""Checkpoints come back as they went, damage is noticed, and a full disk leaves nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from expunge.errors import InternalError, ResourceError
from expunge.models import checkpoint as checkpoint_module
from expunge.models import storage
from expunge.models.checkpoint import (
    atomic_write_text,
    folder_hashes,
    newest_checkpoint,
    save_checkpoint,
    save_pretrained_atomic,
)
from tiny import make_tiny_model


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "a": base,
        "tied": base,
        "turned": base.T,
        "part": base[1:3],
        "half": torch.randn(3).bfloat16(),
        "random": torch.get_rng_state(),
        "empty": torch.empty(0),
        "none": torch.empty(0),
        "scalar": torch.tensor(7),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    meta = {"epoch": 2, "loss": 0.125, "name": "é", "list": [1, None]}
    path = save_checkpoint(tmp_path / "c", 12, tensors, meta)
    found = newest_checkpoint(tmp_path / "c")
    assert found is not None
    assert (found.path, found.step, found.meta) == (path, 12, meta)
    assert list(found.tensors) and set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
        assert found.tensors[name].dtype == tensor.dtype
    assert found.tensors["tied"].data_ptr() == found.tensors["a"].data_ptr()


def test_nothing_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "step-abc").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, {})
    assert names(tmp_path) == ["step-00000004", "step-00000030"]
    save_checkpoint(tmp_path, 31, {"x": torch.tensor(31)}, {}, keep=1)
    assert names(tmp_path) == ["step-00000031"]


def test_saving_a_step_again_wins_over_the_first(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        save_checkpoint(tmp_path, 5, {"x": torch.tensor(value)}, {"value": value})
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.meta == {"value": 3}
    assert len(names(tmp_path)) == 2


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "tensors flipped": lambda p: _flip(p / "tensors.safetensors"),
    "tensors cut": lambda p: os.truncate(p / "tensors.safetensors", 20),
    "tensors gone": lambda p: (p / "tensors.safetensors").unlink(),
    "manifest flipped": lambda p: _flip(p / "manifest.json"),
    "manifest cut": lambda p: os.truncate(p / "manifest.json", 9),
    "manifest gone": lambda p: (p / "manifest.json").unlink(),
    "manifest foreign": lambda p: (p / "manifest.json").write_text("[]") and None,
    "meta edited": lambda p: (
        (p / "manifest.json").write_text((p / "manifest.json").read_text().replace("good", "evil")) and None
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_is_skipped_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, {"x": torch.arange(50)}, {"state": "good"})
    DAMAGE[damage](save_checkpoint(tmp_path, 2, {"x": torch.arange(50)}, {"state": "good"}))
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "damaged checkpoint" in caplog.text
    assert "step-00000002" in caplog.text


FULL: dict[str, Exception] = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "tokenizers": Exception("No space left on device (os error 28)"),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
}


def fail(error: Exception) -> Callable[..., None]:
    def raising(*args: object, **kwargs: object) -> None:
        raise error

    return raising


@pytest.mark.parametrize("where", ["save_file", "sync"])
@pytest.mark.parametrize("kind", FULL)
def test_full_disk_keeps_what_was_there(where: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(3)}, {})
    before = folder_hashes(tmp_path)
    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(checkpoint_module, "save_file", fail(FULL[kind]))
        else:
            patch.setattr(storage, "_sync", fail(FULL[kind]))
        with pytest.raises(ResourceError, match=r"(full|used up).*step-00000002") as caught:
            save_checkpoint(tmp_path, 2, {"x": torch.ones(3)}, {})
        assert caught.value.exit_code == 3
        with pytest.raises(ResourceError):
            patch.setattr(storage, "_sync_tree", fail(FULL[kind]))
            save_pretrained_atomic(make_tiny_model(), _Silent(), tmp_path / "model")  # type: ignore[arg-type]
    assert folder_hashes(tmp_path) == before
    assert names(tmp_path) == ["step-00000001"]


class _Silent:
    def save_pretrained(self, folder: Path) -> None:
        """Write nothing."""


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, {"x": torch.zeros(3)}, {"not json": object()})
    assert names(tmp_path) == []


def test_text_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "record.json"
    atomic_write_text(path, "one\nä")
    atomic_write_text(path, "two\n")
    assert path.read_bytes() == b"two\n"
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.ENOSPC, "full")))
    with pytest.raises(ResourceError):
        atomic_write_text(path, "three")
    assert path.read_bytes() == b"two\n"
    assert names(path.parent) == ["record.json"]


def test_a_folder_that_takes_no_file_is_told_of_by_the_file_s_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(prefix: str, dir: Path) -> tuple[int, str]:
        raise PermissionError(13, "Permission denied", str(dir / f"{prefix}xyz"))

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(PermissionError) as told:
        atomic_write_text(tmp_path / "record.json", "")
    assert told.value.filename == str(tmp_path / "record.json")


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    atomic_write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "folder").mkdir()
    path = save_checkpoint(tmp_path / "c", 1, {}, {})
    assert path.stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_hashes_name_every_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"2")
    (tmp_path / "one").write_bytes(b"1")
    assert folder_hashes(tmp_path) == {
        "b/two": hashlib.sha256(b"2").hexdigest(),
        "one": hashlib.sha256(b"1").hexdigest(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_is_an_ordinary_one(
    dtype: torch.dtype,
    tied: bool,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, ids = make_tiny_model(tie_word_embeddings=tied).to(dtype), torch.tensor([[5, 9, 13]])
    for seed in (1, 2):  # the second replaces the first
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        save_pretrained_atomic(model, tiny_tokenizer, tmp_path / "m")
    assert model.config.use_cache is False
    assert capfd.readouterr().err == ""
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.dtype == dtype
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.use_cache is True
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "m")("ada lives")["input_ids"]
        == tiny_tokenizer("ada lives")["input_ids"]
    )
    assert names(tmp_path) == ["m"]
    assert not [name for name in names(tmp_path / "m") if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_unmerged_adapters_are_not_saved(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model)
    with pytest.raises(InternalError, match="unmerged"):
        save_pretrained_atomic(model, tiny_tokenizer, tmp_path / "m")
    assert names(tmp_path) == []
