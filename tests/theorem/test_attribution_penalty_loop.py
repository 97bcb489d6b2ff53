"""The attribution penalty inside the real loop, next to a loop that is written down naively."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from expunge.data.collate import collate
from expunge.data.order import PairedOrder
from expunge.models import answers
from expunge.models.answers import answer_log_probs
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, Run, assert_same, largest_difference, make_encoder, weights

STRONG = 1e6
RATE, ROWS, STEPS = 1e-2, 3, 4
PLAIN_DESCENT = {  # a huge epsilon turns AdamW without momentum into gradient descent at RATE
    "adam_epsilon": 1e8,
    "learning_rate": RATE * 1e8,
    "adam_beta1": 0.0,
    "max_grad_norm": 0.0,
    "max_steps": STEPS,
    "per_device_train_batch_size": ROWS,
}


def naive_ssiuu(model: LlamaForCausalLM, strength: float) -> None:
    """Algorithm 1 of arXiv:2509.22263 with separate graphs, GradDiff as host, and gradient descent."""
    encoder, previous = make_encoder(), dict[str, Tensor]()
    encoded = [encoder.encode(example.prompt, example.answer) for example in EXAMPLES]
    order = PairedOrder(5, 3, ROWS, seed=0)
    for step in range(STEPS):
        drawn = order.at(step)
        forget = collate([encoded[i] for i in drawn[0]], encoder.pad_id)
        retain = collate([encoded[5 + i] for i in drawn[1]], encoder.pad_id)
        model.zero_grad()
        up, down = (answer_log_probs(model, batch).token.mean() for batch in (forget, retain))
        (up - down).backward()
        maps = {n: p for n, p in model.named_parameters() if "layers." in n and p.ndim == 2}
        slopes = torch.autograd.grad(answer_log_probs(model, forget).sequence.exp().sum(), list(maps.values()))
        with torch.no_grad():
            for (name, weight), g in zip(maps.items(), slopes, strict=True):
                a = weight * g
                weight.grad += 2 * strength * (a < 0) * (a - previous.get(name, a)) * g
                previous[name] = a
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad


def test_the_loop_takes_the_steps_of_algorithm_1() -> None:
    run = Run("ssiuu", {"strength": STRONG, "measure_every": 1}, PLAIN_DESCENT, double=True)
    result, model = run.make()
    naive, plain = make_tiny_model().double(), make_tiny_model().double()
    naive_ssiuu(naive, STRONG)
    naive_ssiuu(plain, 0.0)
    moved = largest_difference(weights(naive), weights(plain))
    assert moved > 1e-5, "the penalty must matter, or this test shows nothing"
    assert largest_difference(weights(model), weights(naive)) < 1e-5 * moved
    assert all(metrics.transform["attribution_penalty"] > 0 for metrics in result.history[2:])


def test_without_strength_it_is_graddiff_bit_for_bit() -> None:
    _, plain = Run("graddiff").make()
    _, penalised = Run("ssiuu", {"strength": 0.0}).make()
    assert_same(weights(plain), weights(penalised))


@pytest.mark.parametrize("method", ["ga", "graddiff", "kl", "npo"])
def test_every_objective_reaches_the_forget_examples_by_their_sequence_alone(method: str) -> None:
    result, _ = Run(method, {"transform": "attribution", "measure_every": 1}, {"max_steps": 2}).make()
    assert result.history[-1].transform["attribution_gradient_ratio"] > 0


def test_half_precision_passes_the_check_of_the_first_backward() -> None:
    run = Run("ssiuu", {"measure_every": 1}, {"max_steps": 2})
    result = run.on(make_tiny_model().to(torch.bfloat16))
    assert result.history[-1].transform["attribution_gradient_ratio"] > 0


def test_a_head_worked_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are made again in every backward, that of the check included."""
    run = Run("ssiuu", {"strength": STRONG}, double=True)
    _, whole = run.make()
    monkeypatch.setattr(answers, "LOGITS_BYTES", 96 * 4)
    _, blocks = run.make()
    assert largest_difference(weights(whole), weights(blocks)) < 1e-8
