"""Runs of the real loop with gradient transforms that are given, not named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from expunge.progress import Progress, Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import Method
from expunge.unlearning.objectives.base import Objective
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.parametrizations.base import Parametrization
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.transforms.base import GradientTransform
from tiny import make_tiny_model
from unlearning_runs import (
    SMOOTH,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    make_request,
    make_uneven_request,
    weights,
)

PLAIN_DESCENT = {"adam_epsilon": 1e8, "adam_beta1": 0.0, "max_grad_norm": 0.0}
"""A huge epsilon turns AdamW without momentum into gradient descent at 1e-8 times the learning rate."""


def transformed(
    *transforms: GradientTransform,
    model: PreTrainedModel | None = None,
    objective: Objective | None = None,
    parametrization: Parametrization | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
    double: bool = True,
    request: Request | None = None,
    **arguments: Any,
) -> tuple[UnlearnResult, dict[str, torch.Tensor]]:
    """The result, and the weights that came of it; in float64 unless `double` is off."""
    model = make_tiny_model() if model is None else model
    if double:
        model = model.double()
    result = unlearn(
        model,
        make_encoder(),
        request or make_request(),
        Method(objective or GradDiff(), transforms, parametrization or Full()),
        UnlearnArguments(**{**SMOOTH, **arguments}),
        output=output,
        progress=progress or Silent(),
    )
    return result, weights(model)


def assert_resumed_is_straight(transform: GradientTransform, folder: Path, **arguments: Any) -> None:
    """Cut after the first and after the third of four steps, at the same bits."""
    straight, expected = transformed(transform, double=False, **arguments)
    for cut in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            transformed(transform, double=False, output=folder / str(cut), progress=CutAfter(cut), **arguments)
        resumed, got = transformed(transform, double=False, output=folder / str(cut), **arguments)
        assert_same(expected, got)
        assert history(straight) == history(resumed)


def assert_cut_changes_nothing(transform: GradientTransform, tolerance: float = 1e-10, **arguments: Any) -> None:
    """A step in one forward, in two or in four, of rows that are padded in every one of them."""
    request = make_uneven_request()
    whole, *others = (
        transformed(
            transform, request=request, per_device_train_batch_size=rows, gradient_accumulation_steps=times, **arguments
        )[1]
        for rows, times in ((4, 1), (2, 2), (1, 4))
    )
    for other in others:
        assert largest_difference(whole, other) < tolerance
