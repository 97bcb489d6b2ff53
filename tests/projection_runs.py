"""Runs with a projection on a tiny model, for the tests of both sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from expunge.progress import Progress, Silent
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import Method, build_method
from expunge.unlearning.parametrizations.base import Material
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parametrizations.projector import Projected
from unlearning_runs import EXAMPLES, SMOOTH, make_encoder, make_request

IDS = torch.arange(3, 15).view(2, 6)
D = 32


def method(**settings: Any) -> Method:
    return replace(build_method("graddiff"), parametrization=Projection(**{"rank": 2, "tokens": "content", **settings}))


def run(
    model: PreTrainedModel,
    settings: Mapping[str, Any] | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> UnlearnResult:
    made = UnlearnArguments(**{**SMOOTH, **arguments})
    encoder, request = make_encoder(), make_request()
    return unlearn(
        model, encoder, request, method(**(settings or {})), made, output=output, progress=progress or Silent()
    )


def material() -> Material:
    encoder = make_encoder()
    items = [encoder.encode(example.prompt, example.answer) for example in EXAMPLES]
    return Material(items[:5], items[5:], encoder.pad_id)


def disturb(projected: Projected, seed: int = 0) -> None:
    """What training may do to the rows, and more."""
    projected.set_to_work()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for rows in projected.parameters.values():
            rows.add_(torch.randn(rows.shape, generator=generator), alpha=0.3)
