"""What unlearning promises whatever the method: nothing to forget changes nothing, and nothing else is looked at."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from expunge.data.collate import Encoded
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.progress import Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import train, unlearn
from expunge.unlearning.methods import METHODS, build_method
from expunge.unlearning.stopping import StopReason
from tiny import make_tiny_model
from unlearning_runs import (
    EXAMPLES,
    SMOOTH,
    TINY,
    Run,
    assert_same,
    make_encoder,
    make_knowing_model,
    make_request,
    weights,
)

LORA = {"parametrization": "lora"}
FULL_ONLY = ("klue", "pgu", "repselect")
"""Methods whose promise is about the weights themselves; they refuse adapters."""


def settings_of(method: str, lora: bool) -> dict[str, object]:
    own = {k: v for k, v in TINY.get(method, {}).items() if not (lora and k.startswith("parametrization."))}
    return {**own, **(LORA if lora else {})}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_zero_forget_data_leaves_the_weights_bit_equal(method: str, lora: bool) -> None:
    model = make_tiny_model()
    before = weights(model)
    parts = build_method(method, settings=settings_of(method, lora))
    arguments = UnlearnArguments(**SMOOTH)
    result = train(model, make_encoder(), (), EXAMPLES, parts, arguments, output=None, progress=Silent())
    assert_same(before, weights(model))
    assert (result.steps, result.stop_reason) == (0, StopReason.NOTHING_TO_FORGET)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_a_fact_unknown_from_the_start_leaves_the_weights_bit_equal(method: str, lora: bool) -> None:
    model = make_tiny_model()
    before = weights(model)
    run = Run(method, settings_of(method, lora), {"stop_log_odds": 99.0, "stop_within": None})
    if lora and method in FULL_ONLY:
        with pytest.raises(InputError, match=r"adapter|LoRA|lora"):
            run.on(model)
        assert_same(before, weights(model))
        return
    result = run.on(model)
    assert_same(before, weights(model))
    assert (result.steps, result.stop_reason, len(result.history)) == (0, StopReason.FORGOTTEN, 1)


@pytest.mark.parametrize("method", METHODS)
def test_no_budget_leaves_the_weights_bit_equal(method: str) -> None:
    model = make_tiny_model()
    before = weights(model)
    run = Run(method, settings_of(method, lora=False), {"max_steps": 0})
    assert run.on(model).stop_reason == StopReason.MAX_STEPS
    assert_same(before, weights(model))


@pytest.mark.parametrize("method", METHODS)
def test_known_answers_become_less_likely_and_retain_answers_are_held_by_all_but_ga(method: str) -> None:
    def mean_log_prob(model: torch.nn.Module, which: slice) -> float:
        rows = [make_encoder().encode(e.prompt, e.answer) for e in EXAMPLES[which]]
        return sum(answer_log_prob(model, row) for row in rows) / len(rows)

    model, start = make_knowing_model(), make_knowing_model()
    Run(method, settings_of(method, lora=False), {"max_steps": 24}).on(model)
    forget, retain = slice(0, 5), slice(5, None)
    assert mean_log_prob(model, forget) < mean_log_prob(start, forget) - 0.5
    if method != "ga":
        ascent = make_knowing_model()
        Run("ga", arguments={"max_steps": 24}).on(ascent)
        assert mean_log_prob(model, retain) > mean_log_prob(ascent, retain)


def answer_log_prob(model: torch.nn.Module, row: Encoded) -> float:
    with torch.no_grad():
        table = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return sum(table[i - 1, row.ids[i]].item() for i in range(row.answer_start, len(row.ids)))


def test_ga_never_looks_at_the_retain_set() -> None:
    models = [make_tiny_model(), make_tiny_model()]
    request = make_request()
    for model, retain in zip(models, (request.retain, ()), strict=True):
        other = replace(request, retain=retain)
        unlearn(model, make_encoder(), other, "ga", UnlearnArguments(**SMOOTH))
    assert_same(*map(weights, models))


@pytest.mark.parametrize("method", ["graddiff", "kl", "npo"])
def test_without_retain_items_a_method_is_its_forget_term(method: str) -> None:
    def after(request: Request, settings: dict[str, object]) -> dict[str, torch.Tensor]:
        model = make_tiny_model()
        unlearn(model, make_encoder(), request, build_method(method, settings=settings), UnlearnArguments(**SMOOTH))
        return weights(model)

    one = after(replace(make_request(), retain=()), {})
    other = after(make_request(), {"objective.retain_weight": 0})
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_the_first_step_is_adamw_on_the_gradient_of_the_formula() -> None:
    """One step by hand, on a second copy: GradDiff's loss by plain `logits`, clipped, and AdamW of torch."""
    model = make_tiny_model()
    by_hand = copy.deepcopy(model)
    arguments = UnlearnArguments(
        learning_rate=1e-2, max_steps=1, per_device_train_batch_size=5, adam_epsilon=1e-3, stop_log_odds=-99.0
    )
    result = unlearn(model, make_encoder(), make_request(), "graddiff", arguments)

    encoder, loss = make_encoder(), torch.zeros(())
    forget, retain = PairedOrder(5, 3, 5, 0).at(0)
    for sign, items in ((1, forget), (-1, [5 + i for i in retain])):
        rows = [encoder.encode(EXAMPLES[i].prompt, EXAMPLES[i].answer) for i in items]
        for row in rows:
            table = by_hand(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            loss = loss + sign * table[-2, row.ids[-1]] / len(rows)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    torch.optim.AdamW(by_hand.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0).step()
    measured = result.history[1]
    assert measured.loss == pytest.approx(loss.item(), rel=1e-5)
    assert measured.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    one, other = weights(model), weights(by_hand)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_start_values_are_the_start_s_however_far_training_went() -> None:
    """NPO's forget term after k steps, against the formula with log-probabilities of an untouched copy."""
    model, start = make_tiny_model(), make_tiny_model()
    arguments = {"max_steps": 3, "per_device_train_batch_size": 5}
    Run("npo", arguments=arguments).on(model)
    result, _ = Run("npo", arguments={**arguments, "max_steps": 4}).make()
    rows = [make_encoder().encode(e.prompt, e.answer) for e in EXAMPLES[:5]]
    ratios = [answer_log_prob(model, row) - answer_log_prob(start, row) for row in rows]
    expected = sum(2 / 0.1 * math.log(1 + math.exp(0.1 * ratio)) for ratio in ratios) / 5
    assert result.history[4].forget == pytest.approx(expected, rel=1e-5)
