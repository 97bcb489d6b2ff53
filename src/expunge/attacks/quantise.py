"""Quantisation: round the unlearned weights to a few bits and see whether the forgotten answers come back.

    s = max_g |W| / (2^(bits - 1) - 1),   W <- s round(W / s)           g: `group` neighbouring inputs of one output

Unlearning at a small learning rate moves most weights by less than half of s, so rounding may put back the original
ones (arXiv:2410.16454). Nothing is trained: each pair (bits, group) is one variant of the model, and the score is the
highest over all variants, so that it can only grow with their number. Rounded are the weights of all linear maps but
the output head, as bitsandbytes and GPTQ do; embeddings, norms and biases stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.attacks.base import Attacked, AttackResult, CurvePoint, T
from expunge.attacks.budget import Budget
from expunge.attacks.cells import Cells
from expunge.attacks.material import Material
from expunge.attacks.weights import Weights, lent
from expunge.data.collate import Encoder
from expunge.errors import InputError
from expunge.models.scores import ItemScore, greedy, score_items, summarise
from expunge.progress import Progress, Silent
from expunge.request import Request

Variant = tuple[int, int]
"""Bits and group size."""


@dataclass(frozen=True)
class Quantise:
    """Round to nearest, symmetric, in groups.

    Args:
        bits: of a weight, 2 to 8; each is tried with each group size.
        groups: inputs that share a scale; a last, smaller group takes what is left.
    """

    bits: tuple[int, ...] = (8, 4)
    groups: tuple[int, ...] = (32, 64, 128)

    name: ClassVar[str] = "quantise"
    summary: ClassVar[str] = "round the weights to 8 and 4 bits, score all forgotten facts"

    def __post_init__(self) -> None:
        if not self.bits or not all(2 <= bits <= 8 for bits in self.bits):
            raise InputError("bits must lie between 2 and 8.", f"{self.name}: bits={self.bits}")
        if not self.groups or min(self.groups) < 1:
            raise InputError("A group must have at least 1 weight.", f"{self.name}: groups={self.groups}")

    def run(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        request: Request,
        *,
        progress: Progress | None = None,
        probe: Callable[[PreTrainedModel], T] | None = None,
        cells: Cells | Path | None = None,
        like: AttackResult | None = None,
    ) -> Attacked[T]:
        """See `Attack.run`; a variant is scored as fast as it would be read back, so none is kept in `cells`."""
        progress, began = progress or Silent(), time.perf_counter()
        material = Material((), request.forget)
        material.require_scorable(self.name)
        variants = list(product(self.bits, self.groups))
        with lent(model) as weights:
            start = score_items(model, encoder, material.scored)
            curve, items = [_point(0, "as it is", start)], start
            progress.start(self.name, len(variants))
            for place, variant in enumerate(variants, 1):
                _place(model, weights, variant)
                scores = score_items(model, encoder, material.scored)
                curve.append(_point(place, _called(variant), scores))
                if curve[-1].log_odds > max(point.log_odds for point in curve[:-1]):
                    items = scores
                progress.advance(self.name, log_odds=curve[-1].log_odds)
            best = max(curve, key=lambda point: point.log_odds)
            _place(model, weights, variants[best.step - 1] if best.step else None)
            said = greedy(model, encoder, [example.prompt for example in material.scored])
            probed = None if probe is None else probe(model)
        progress.finish(self.name)
        ids = tuple(example.id for example in material.scored)
        result = AttackResult(
            name=self.name,
            settings=TypeAdapter(type(self)).dump_python(self, mode="json"),
            curve=tuple(curve),
            start=summarise(start),
            best=best,
            best_accuracy=max(curve, key=lambda point: point.accuracy),
            items=tuple(items),
            trained_ids=(),
            held_out_ids=ids,
            samples=dict(zip(ids, said, strict=True)),
            allowed=Budget(variants=len(variants)),
            spent=Budget(variants=len(variants)),
            seconds=time.perf_counter() - began,
        )
        return Attacked(result, probed)


@torch.no_grad()
def quantise(model: PreTrainedModel, bits: int, group: int) -> None:
    """Round the weights of all linear maps of `model` but its head, in place."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.copy_(rounded(module.weight, bits, group))


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [outputs, inputs] on the nearest of 2^bits - 1 levels, equally spaced around 0, in each group."""
    top = 2 ** (bits - 1) - 1
    parts = torch.split(weight, group, dim=1)
    scales = [(part.abs().amax(1, keepdim=True) / top).clamp(min=torch.finfo(weight.dtype).tiny) for part in parts]
    return torch.cat([scale * (part / scale).round() for part, scale in zip(parts, scales, strict=True)], dim=1)


def _place(model: PreTrainedModel, weights: Weights, variant: Variant | None) -> None:
    """Put the untouched weights back and round them as `variant` says."""
    weights.restore()
    if variant is not None:
        quantise(model, *variant)


def _point(place: int, variant: str, items: tuple[ItemScore, ...]) -> CurvePoint:
    scores = summarise(items)
    odds = tuple(item.log_odds for item in items)
    return CurvePoint(0.0, 0, place, 0, scores.accuracy, scores.log_odds, odds, variant)


def _called(variant: Variant) -> str:
    return f"int{variant[0]}, groups of {variant[1]}"
