"""What makes two runs the same run, so that the one may go on from the other's checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from expunge.unlearning.arguments import UnlearnArguments

if TYPE_CHECKING:
    from expunge.unlearning.batches import StepBatches
    from expunge.unlearning.methods import Method

_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FREE: Final = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_seconds",
    "checkpoint_seconds",
    "checkpoint_steps",
)
"""Arguments that may change when a run goes on: how a batch is cut (its size is compared), budgets of time, saving."""


def identity(method: Method, arguments: UnlearnArguments, batches: StepBatches, model: nn.Module) -> dict[str, Any]:
    """What must agree: method, arguments, items and their order, starting weights, what earlier requests left."""
    settings = {name: value for name, value in asdict(arguments).items() if name not in _FREE}
    earlier = getattr(method.parametrization, "earlier", None)
    data = {"forget": batches.forget, "retain": batches.retain, "companions": batches.companions}
    data |= {name: rows for name in ("twins", "options") if (rows := getattr(batches, name))}
    return {
        "method": repr(method),
        **settings,
        "items per step": batches.order.batch_size,
        **({"held items": batches.order.n_held} if batches.order.n_held else {}),
        **{name: hashlib.sha256(repr(list(items)).encode()).hexdigest() for name, items in data.items()},
        "starting weights": fingerprint(model),
        **({"earlier requests": hashlib.sha256(Path(earlier).read_bytes()).hexdigest()} if earlier else {}),
    }


def fingerprint(model: nn.Module) -> str:
    """A digest of names, shapes and bits of all parameters: cheap, whatever the threads, and good against mistakes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(_BITS[parameter.element_size()])
        digest.update(f"{name} {tuple(parameter.shape)} {bits.sum(dtype=torch.int64).item()};".encode())
    return digest.hexdigest()
