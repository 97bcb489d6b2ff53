"""The L2 control next to finite differences, and to a loop that is written down naively."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data.collate import collate
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.unlearning.transforms.l2 import L2Penalty, pull
from tiny import make_tiny_model
from transform_runs import PLAIN_DESCENT, assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import EXAMPLES, assert_same, largest_difference, make_encoder

RATE = 1e-2
DESCENT = PLAIN_DESCENT | {"learning_rate": RATE * 1e8}


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    draw = np.random.default_rng(0)
    theta, anchor = draw.normal(size=(2, 5)), draw.normal(size=(2, 5))

    def penalty(x: np.ndarray) -> float:
        return 0.7 / 2 * float(((x - anchor) ** 2).sum())

    slope = np.zeros_like(theta)
    for place in np.ndindex(theta.shape):
        nudge = np.zeros_like(theta)
        nudge[place] = 1e-5
        slope[place] = (penalty(theta + nudge) - penalty(theta - nudge)) / 2e-5
    gradient = torch.zeros(2, 5, dtype=torch.float64)
    distance, ratio = pull([gradient], [torch.tensor(theta - anchor)], 0.7, "absolute")
    assert np.abs(slope).min() > 1e-3
    assert np.abs(gradient.numpy() - slope).max() < 1e-9
    assert distance == pytest.approx(np.linalg.norm(theta - anchor))
    assert ratio == 0.0, "a number that can be written down, where there is no gradient of a loss"


def test_the_relative_pull_has_its_share_of_the_loss_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    loss = [torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)]
    offsets = [torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)]
    gradients = [x.clone() for x in loss]
    _, ratio = pull(gradients, offsets, 0.3, "relative")
    added, first, away = (torch.cat([x.flatten() for x in xs]) for xs in (gradients, loss, offsets))
    added = added - first
    assert float(added.norm() / first.norm()) == pytest.approx(0.3, rel=1e-5)
    assert ratio == pytest.approx(0.3)
    assert float(added @ away / added.norm() / away.norm()) == pytest.approx(1.0, rel=1e-5)


def naive_path(anchor: str, strength: float) -> list[dict[str, torch.Tensor]]:
    """Weights after 0 to 3 steps of gradient descent, each taking its loss gradient from a one-step run."""
    path = [{name: p.detach().double() for name, p in make_tiny_model().named_parameters()}]
    for step in range(3):
        loss_gradient = _loss_gradient(path[-1], step)
        against = path[0] if anchor == "initial" else path[max(step - 1, 0)]
        pulled = {n: loss_gradient[n] + strength * (w - against[n]) for n, w in path[-1].items()}
        path.append({n: w - RATE * pulled[n] for n, w in path[-1].items()})
    return path


def _loss_gradient(at: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """Of graddiff on all rows at once, written without the loop."""
    model, encoder = make_tiny_model().double(), make_encoder()
    model.load_state_dict(at, strict=False)
    items = [encoder.encode(e.prompt, e.answer) for e in EXAMPLES]
    forget, retain = PairedOrder(5, 3, 8, seed=0).at(step)
    up = answer_log_probs(model, collate([items[i] for i in forget], 0)).token.mean()
    down = answer_log_probs(model, collate([items[5 + i] for i in retain], 0)).token.mean()
    (up - down).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("anchor", ["previous", "initial"])
def test_the_loop_takes_the_steps_of_the_formula(anchor: Any) -> None:
    result, got = transformed(L2Penalty(20.0, anchor), max_steps=3, **DESCENT)
    expected, plain = naive_path(anchor, 20.0)[-1], naive_path(anchor, 0.0)[-1]
    moved = largest_difference(expected, plain)
    assert moved > 1e-3, "the penalty must matter, or this test shows nothing"
    assert largest_difference(got, expected) < 1e-5 * moved
    first, *later = (metrics.transform["l2_gradient_ratio"] for metrics in result.history[1:])
    assert first == 0.0
    assert all(ratio > 0 for ratio in later)


def test_without_strength_it_is_graddiff_bit_for_bit() -> None:
    assert_same(transformed(double=False)[1], transformed(L2Penalty(0.0), double=False)[1])


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_a_strong_pull_to_the_start_keeps_the_model_nearer_to_it(scale: Any) -> None:
    start = transformed(max_steps=0)[1]
    weak, strong = (transformed(L2Penalty(x, "initial", scale), **DESCENT)[1] for x in (0.0, 0.9))
    distance = [sum(float((w[n] - start[n]).square().sum()) for n in w) for w in (weak, strong)]
    assert distance[1] < distance[0]


@pytest.mark.parametrize("penalty", [L2Penalty(5.0), L2Penalty(0.5, "previous", "relative"), L2Penalty(5.0, "initial")])
def test_resumed_is_straight(penalty: L2Penalty, tmp_path: Path) -> None:
    assert_resumed_is_straight(penalty, tmp_path)


def test_the_cut_of_a_step_changes_nothing() -> None:
    assert_cut_changes_nothing(L2Penalty(0.5, "previous", "relative"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strength=-1"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"anchor": "initail"}, "Did you mean 'initial'"),
        ({"scale": "relativ"}, "Did you mean 'relative'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        L2Penalty(**settings)
