"""The loop's arguments and its schedules."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from expunge.errors import InputError
from expunge.unlearning.arguments import UnlearnArguments

OURS = {
    "stop_accuracy",
    "stop_log_odds",
    "stop_within",
    "min_steps",
    "max_seconds",
    "checkpoint_seconds",
    "checkpoint_steps",
}


def test_names_are_those_of_training_arguments() -> None:
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(UnlearnArguments)} - theirs == OURS


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1e-5},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"max_steps": -1},
        {"eval_steps": 0},
        {"max_grad_norm": -1.0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"adam_beta1": 1.0},
        {"adam_beta2": -0.1},
        {"stop_accuracy": -0.1},
        {"stop_accuracy": "even"},
        {"stop_log_odds": math.nan},
        {"max_seconds": -1.0},
        {"checkpoint_seconds": -1.0},
        {"checkpoint_steps": 0},
        {"lr_scheduler_type": "linaer"},
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, object]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(InputError) as error:
        UnlearnArguments(**wrong)  # type: ignore[arg-type]
    assert str(value) in error.value.where
    assert name in str(error.value) or "'linear'" in error.value.fix


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_are_those_of_transformers(schedule: str) -> None:
    arguments = UnlearnArguments(learning_rate=0.5, max_steps=9, lr_scheduler_type=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=9)
    for step in range(9):
        assert arguments.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_climbs_evenly_from_above_zero_and_no_step_is_wasted(schedule: str) -> None:
    arguments = UnlearnArguments(
        learning_rate=1.0,
        max_steps=8,
        warmup_steps=3,
        lr_scheduler_type=schedule,  # type: ignore[arg-type]
    )
    rates = [arguments.rate(step) for step in range(8)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert min(rates) > 0
    assert rates[3:] == sorted(rates[3:], reverse=True)
