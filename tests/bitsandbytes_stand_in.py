"""The four functions of bitsandbytes that are called, doing what they are documented to do."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.attacks.quantise import NF4


def quantize_4bit(weight: Tensor, blocksize: int, quant_type: str) -> tuple[Tensor, dict[str, Any]]:
    assert weight.is_contiguous() and weight.dtype == torch.float32 and quant_type in ("nf4", "fp4")
    blocks = weight.reshape(-1, blocksize)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4) if quant_type == "nf4" else torch.linspace(-1, 1, 15)
    codes = ((blocks / scale)[..., None] - levels).abs().argmin(-1)
    return codes, {"scale": scale, "levels": levels, "shape": weight.shape}


def dequantize_4bit(codes: Tensor, state: dict[str, Any]) -> Tensor:
    restored: Tensor = state["levels"][codes] * state["scale"]
    return restored.reshape(state["shape"])


def int8_vectorwise_quant(weight: Tensor) -> tuple[Tensor, Tensor, None]:
    assert weight.is_contiguous() and weight.dtype == torch.float16
    scale = weight.abs().amax(1).float()
    return (weight.float() * 127 / scale[:, None]).round().to(torch.int8), scale, None


def int8_vectorwise_dequant(values: Tensor, scale: Tensor) -> Tensor:
    return values * scale[:, None] / 127


def stand_in_for_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them where the library would be imported from."""
    functional = ModuleType("bitsandbytes.functional")
    for function in (quantize_4bit, dequantize_4bit, int8_vectorwise_quant, int8_vectorwise_dequant):
        setattr(functional, function.__name__, function)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
