"""A model and its tokenizer from a folder or the Hub: explicit dtype and revision, no pickle, no foreign code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from expunge.errors import ExpungeError, InputError, ResourceError, nearest, out_of_memory
from expunge.models.projections import FILE, attach, load_rows
from expunge.models.quiet import quiet
from expunge.models.smollm import cache_folder, fetch_smollm2, model_source
from expunge.models.storage import disk_errors, model_hashes

__all__ = ["DTYPES", "LoadedModel", "cache_folder", "fetch_smollm2", "load_model", "model_folder", "model_source"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]
_NUMBER = re.compile(r"\.\d+\.")
_BIAS = re.compile(r"\.bias$")
_FOREIGN = "The checkpoint is incomplete or belongs to another config.json."


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, without key-value cache, with its tokenizer.

    Args:
        model: on the device and in the dtype asked for.
        tokenizer: as saved with the model; a missing pad token stays missing (`Encoder.pad_id` finds one).
        path: the folder or Hub id as given.
        folder: the folder that was read (for a Hub id, its snapshot).
        revision: of the Hub id, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    folder: Path
    revision: str | None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of every file read from, weights and tokenizer among them; computed when first asked for."""
        return model_hashes(self.folder)


def load_model(
    path: str | Path, *, dtype: str = "float32", revision: str | None = None, device: str = "cpu"
) -> LoadedModel:
    """The causal language model and tokenizer at `path`, a local folder or else a Hub id.

    Projections of whole blocks that were saved with the model are at work in it.

    Raises:
        InputError: nothing is there, it is no causal language model, it needs its own code, its weights are missing,
            damaged, of another config, pickled or quantised, the tokenizer is missing or another model's, the dtype or
            the device is unknown or holds no numbers.
        ResourceError: it does not fit into memory, or a download not on the disk.
    """
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}.", "dtype", nearest(dtype, DTYPES))
    folder = model_folder(path, revision)
    with quiet():
        _check_config(folder)
        _check_weights(folder)
        tokenizer = _tokenizer(folder)
        model = _to_device(_model(folder, DTYPES[dtype]), device)
    if (folder / FILE).is_file():
        attach(model, load_rows(folder / FILE))
    rows = _vocabulary(model)
    if len(tokenizer) > rows:
        what = f"The tokenizer knows {len(tokenizer)} tokens, the model only {rows}."
        raise InputError(what, str(folder), "They do not belong together; save the model's own tokenizer beside it.")
    return LoadedModel(model.train(False), tokenizer, str(path), folder, revision)


def model_folder(path: str | Path, revision: str | None = None) -> Path:
    """The local folder of the model at `path`, fetched if that is a Hub id; errors as in `load_model`."""
    path = str(path)
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise InputError("A model is a folder, this is a file.", path, "Give the folder with config.json.")
    if not _HUB_ID.fullmatch(path):
        raise InputError("There is no such model folder.", path, "Check the path, or give a Hub id such as org/name.")
    from huggingface_hub import snapshot_download

    try:
        with quiet(), disk_errors(local):
            found = snapshot_download(
                path, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED, etag_timeout=10
            )
    except ResourceError:
        raise
    except Exception as error:  # the Hub client lets many kinds out, of its own and of its HTTP library
        what = "This is neither a local folder nor a model that the Hub gives us."
        raise InputError(what, path, f"Check the name and the network ({type(error).__name__}).") from error
    return Path(found)


def _check_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        fix = "Merge the adapter into its model first." if adapter else "Give a folder written by save_pretrained."
        raise InputError("This folder holds no model: config.json is missing.", str(folder), fix)
    with _input_errors("The config cannot be used", folder / "config.json", "Copy or save the model again."):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        named = config.architectures or [causal]
        known = causal is not None and causal in named
        blocks = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if not known:
        what = f"This is not a causal language model but {named[0] or config.model_type}."
        raise InputError(what, str(folder), "Give a model that AutoModelForCausalLM was saved from.")
    if isinstance(blocks, int) and blocks < 1:
        where = str(folder / "config.json")
        raise InputError(f"By its config the model has {blocks} blocks.", where, "Copy or save the model again.")
    if getattr(config, "quantization_config", None) is not None:
        what = "The weights are quantised, and quantised weights cannot be trained."
        raise InputError(what, str(folder), "Give the model that they were made from, unquantised.")


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for end in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{end}")), None)
    what = f"The weights are pickled ({pickled}), which can run code." if pickled else "There are no weights."
    raise InputError(what, str(folder), "Only safetensors are read; save_pretrained writes them.")


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    fix = "Save the model's own tokenizer beside it; tokenizer.json is enough."
    with _input_errors("The tokenizer is missing or damaged", folder, fix):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def _model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    # Mismatches are let through here because transformers explains them in a printed table; we name the first.
    with _input_errors("The weights cannot be read", folder, "Copy or save the model again."):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]
    about: dict[str, Any] = loaded[1]
    wrong = sorted([*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])])
    if wrong:
        what = f"{len(wrong)} tensors of the model are missing or of another shape, the first is {wrong[0]}."
        raise InputError(what, str(folder), _FOREIGN)
    if unused := _unused(model, about["unexpected_keys"]):
        what = f"{len(unused)} tensors have no place in the model that config.json describes, the first is {unused[0]}."
        raise InputError(what, str(folder), _FOREIGN)
    model.config.use_cache = False
    return model


def _unused(model: PreTrainedModel, left_over: Iterable[str]) -> list[str]:
    """Of the tensors that were not read, those of further blocks, and biases beside weights that are there.

    The model can do without others: buffers of old versions, other heads.
    """
    ours = model.state_dict()
    likes = (_NUMBER, ".0."), (_BIAS, ".weight")
    return sorted(key for key in left_over if any(which.sub(like, key, count=1) in ours for which, like in likes))


def _vocabulary(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    weight = model.get_input_embeddings().get_parameter("weight")
    return weight.shape[0]


def _to_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    fix = "Take cpu, or one that torch finds here."
    with _input_errors("The device cannot be used", Path(device), fix):
        if torch.device(device).type == "meta":
            raise InputError("The device meta holds no numbers, so nothing can be computed on it.", "device", fix)
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return moved


@contextmanager
def _input_errors(what: str, where: Path, fix: str) -> Iterator[None]:
    """Turn whatever transformers and torch raise into our errors: memory, the disk, or else the input's fault."""
    try:
        with disk_errors(where):
            yield
    except ExpungeError:
        raise
    except Exception as error:  # of a damaged file they believe what it says, and fail anywhere
        if out_of_memory(error):
            raise ResourceError("The model does not fit into memory.", str(where), "Use a smaller dtype.") from error
        raise InputError(f"{what}: {_first_sentence(error)}", str(where), fix) from error


def _first_sentence(error: Exception) -> str:
    """The first line of what was raised, with the next if a colon leads to it."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
