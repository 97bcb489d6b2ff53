"""Quantisation by bitsandbytes, the library by which most people run a model in 4 or 8 bits.

    W <- dequantise(quantise(W))

    nf4, fp4    blocks of 64 neighbouring weights share a scale (arXiv:2305.14314)
    int8        each output shares one; weights only, as activations stay in full precision here, unlike in
                LLM.int8() (arXiv:2208.07339)

Each format is one trial. The library runs where the model is, on the CPU too, and computes the matrices only: the
forward is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.base import T, Target
from expunge.attacks.matrices import InnerMap, changed
from expunge.attacks.trials import Trial, Wear
from expunge.attacks.weights import Weights
from expunge.errors import InputError

Format = Literal["nf4", "fp4", "int8"]


@dataclass(frozen=True)
class QuantiseBnb(Wear):
    """Round the weights as bitsandbytes does.

    Args:
        formats: nf4, fp4 or int8; each is one trial.
    """

    formats: tuple[Format, ...] = ("nf4", "int8")

    name: ClassVar[str] = "quantise-bnb"
    summary: ClassVar[str] = "round the weights to NF4 and int8 by bitsandbytes, score all forgotten facts"

    def __post_init__(self) -> None:
        if not self.formats:
            raise InputError("There must be at least one format.", f"{self.name}: formats={self.formats}")

    def count(self, target: Target[T]) -> int:
        """Formats; InputError where bitsandbytes cannot be imported."""
        _library()
        return len(self.formats)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each format."""
        for form in self.formats:
            yield Trial(f"bitsandbytes {form}", partial(changed, target.model, partial(_rounded, form)))

    def notes(self, target: Target[T]) -> tuple[str, ...]:
        """The library's version."""
        try:
            return (f"bitsandbytes {version('bitsandbytes')} rounded the weights.",)
        except PackageNotFoundError:
            return ()


def round_trip(weight: Float[Tensor, "outputs inputs"], form: Format) -> Float[Tensor, "outputs inputs"]:
    """What bitsandbytes makes of `weight` and back, in the dtype that it gives.

    Raises:
        InputError: bitsandbytes cannot be imported.
    """
    library = _library()
    if form == "int8":
        # Its own int8 layer takes the weights in this dtype too.
        values, scales, _ = library.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
        restored = library.int8_vectorwise_dequant(values, scales)
    else:
        packed, state = library.quantize_4bit(weight.float().contiguous(), blocksize=64, quant_type=form)
        restored = library.dequantize_4bit(packed, state)
    back: Tensor = restored.reshape(weight.shape)
    return back


def _rounded(form: Format, each: InnerMap) -> Tensor:
    return round_trip(each.matrix, form)


def _library() -> Any:
    try:
        return import_module("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"bitsandbytes cannot be imported ({error}).",
            QuantiseBnb.name,
            "Install it with: pip install bitsandbytes, or take the attack quantise, which needs nothing.",
        ) from error
