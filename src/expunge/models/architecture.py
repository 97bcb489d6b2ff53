"""Where the parts of a model are: blocks, linear maps, final norm and head, one table row per family.

The table holds only families whose rows are tested on a randomly initialised model. A model outside it still has a
`Readout` (backbone, head, softcap), which is checked against the model's own logits before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from expunge.errors import InputError

MODULES: Final = ("q", "k", "v", "o", "gate", "up", "down")

LEARNED_POSITIONS: Final = ("wpe", "embed_positions", "position_embeddings")
"""What an embedding of positions is called."""


@dataclass(frozen=True)
class Family:
    """Paths of the parts: `blocks` and `norm` from the backbone, `linears` from one block."""

    blocks: str
    norm: str
    linears: dict[str, str]


_ATTENTION = {key: f"self_attn.{key}_proj" for key in "qkvo"}
_LLAMA = Family("layers", "norm", {**_ATTENTION, **{key: f"mlp.{key}_proj" for key in ("gate", "up", "down")}})
_PHI = Family(
    "layers",
    "final_layernorm",
    {**_ATTENTION, "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"},
)
_PHI3 = Family(
    "layers",
    "norm",
    {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
)
_NEOX = Family(
    "layers",
    "final_layer_norm",
    {
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
)
_GPT2 = Family("h", "ln_f", {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"})

FAMILIES: Final[dict[str, Family]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": _PHI,
    "phi3": _PHI3,
    "gpt_neox": _NEOX,
    "gpt2": _GPT2,
}


@dataclass(frozen=True)
class Readout:
    """The way from token ids to logits: `logits = softcap(head(backbone(ids).last_hidden_state))`.

    Args:
        backbone: gives the normed final states.
        head: the unembedding.
        softcap: c of `c * tanh(logits / c)`, or None.
    """

    backbone: nn.Module
    head: nn.Module
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of normed states [..., d], in fp32 (fp64 stays fp64)."""
        return capped(self.head(hidden), self.softcap)


@dataclass(frozen=True)
class Architecture(Readout):
    """A `Readout` and the parts inside the backbone.

    Args:
        family: the `model_type` of the model's config.
        blocks: the transformer blocks in order.
        linears: for each block its linear maps, by `MODULES` names; fused maps stand under "qkv" or "gate_up", and a
            family without a gate has no "gate". With peft adapters injected, the adapted layer (whose output is the
            map's output) is given; `base_linear` finds the map inside.
        norm: the final norm.
    """

    family: str
    blocks: nn.ModuleList
    linears: tuple[dict[str, nn.Module], ...]
    norm: nn.Module


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """`softcap * tanh(logits / softcap)` in the logits' dtype (as the models do it), then at least fp32."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def describe(model: PreTrainedModel) -> Architecture:
    """The parts of `model`.

    Raises:
        InputError: the family is not in `FAMILIES`, or a part is not where its row says.
    """
    family = model.config.model_type
    if family not in FAMILIES:
        raise InputError(
            f"The model family {family!r} is not known: no one has said where its blocks and linear maps are.",
            type(model).__name__,
            f"Known families: {', '.join(sorted(FAMILIES))}. A row in expunge.models.architecture.FAMILIES adds one.",
        )
    row = FAMILIES[family]
    read = readout(model)
    blocks = _find(read.backbone, row.blocks, family)
    if not isinstance(blocks, nn.ModuleList):
        raise _misplaced(row.blocks, family, type(blocks).__name__)
    linears = tuple({key: _find(block, path, family) for key, path in row.linears.items()} for block in blocks)
    for module in (module for block in linears for module in block.values()):
        base_linear(module)
    norm = _find(read.backbone, row.norm, family)
    return Architecture(read.backbone, read.head, read.softcap, family, blocks, linears, norm)


def base_linear(module: nn.Module) -> nn.Linear | Conv1D:
    """The linear map itself, inside any adapter around it; a Conv1D keeps its weight as [in, out].

    Raises:
        InputError: there is none.
    """
    inner = module
    while inside := dict(inner.named_children()).get("base_layer"):
        inner = inside
    if not isinstance(inner, nn.Linear | Conv1D):
        known = "Mixtures of experts and quantized maps are not known."
        raise InputError(f"Expected a linear map, found {type(inner).__name__}.", fix=known)
    return inner


def with_states(out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output with its states changed: they are the output itself, or the first of several."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def width(module: nn.Module) -> int:
    """The number of outputs (neurons) of a linear map."""
    inner = base_linear(module)
    return inner.out_features if isinstance(inner, nn.Linear) else int(inner.nf)


def row_limit(model: PreTrainedModel, most: int = 512, room: int = 64) -> int:
    """Tokens of the longest row: `most`, or fewer where positions are learned, of which a model has no more than it has
    rows for, so that `room` (or half of them) stay for what it goes on with."""
    learned = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS
    ]
    return min([most, *(max(n - room, n // 2) for n in learned)])


def readout(model: PreTrainedModel) -> Readout:
    """Backbone, head and softcap of any causal language model.

    Raises:
        InputError: the model's own logits are something else than its head applied to its final states.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    backbone = model.base_model
    if head is None or backbone is model:
        raise InputError("The model has no separate head.", type(model).__name__, "Give a causal language model.")
    softcap = model.config.to_dict().get("final_logit_softcapping")
    read = Readout(backbone, head, softcap)
    if model.config.model_type not in FAMILIES and model not in _checked:
        _check(model, read)
        _checked.add(model)
    return read


_checked: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def _check(model: PreTrainedModel, read: Readout) -> None:
    """Compare both ways to the logits on three tokens; families scale or bend their logits in many ways."""
    ids = torch.arange(3, device=model.device)[None]
    training = model.training
    model.train(False)
    try:
        own = model(input_ids=ids, use_cache=False).logits
        ours = read.logits(read.backbone(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        model.train(training)
    if own.shape != ours.shape or not torch.allclose(own.to(ours.dtype), ours, rtol=1e-3, atol=1e-4):
        raise InputError(
            "The model does something to its logits that is not known (a scale, a cap, a second head).",
            f"{type(model).__name__}, family {model.config.model_type!r}",
            f"Known families: {', '.join(sorted(FAMILIES))}.",
        )


def _find(root: nn.Module, path: str, family: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise _misplaced(path, family, type(root).__name__) from None


def _misplaced(path: str, family: str, found: str) -> InputError:
    return InputError(
        f"This {family!r} model is built in an unknown way: looked for {path!r}.", found, "Is it a modified variant?"
    )
