"""Products of float32 matrices are as exact as the recipe says, in every stage and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from audits import Expunge, audit, record_of
from expunge import pipeline
from expunge.models.precision import matmul_precision
from expunge.recipe import Recipe


@pytest.fixture
def seen() -> Iterator[set[str]]:
    """The precisions at which linear maps are applied."""
    found: set[str] = set()

    def note(module: nn.Module, inputs: object) -> None:
        if isinstance(module, nn.Linear):
            found.add(torch.get_float32_matmul_precision())

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    hook.remove()


def test_every_stage_of_a_run(at: Path, seen: set[str], unrendered: None) -> None:
    recipe = Recipe.of(
        {
            "model": "taught",
            "control": "fresh",
            "method": "graddiff",
            "matmul_precision": "medium",
            "data": {"forget": "forget.jsonl", "retain": "retain.jsonl", "attack": "attack.jsonl"},
            "unlearn": {"max_steps": 2},
            "attacks": {"relearn-related": {"max_steps": 2, "learning_rates": [1e-3]}},
            "output": "run",
        },
        "test",
    )
    stages = (
        lambda: pipeline.unlearn(recipe),
        lambda: pipeline.attack(Path("run")),
        lambda: pipeline.audit(Path("run")),
        lambda: pipeline.verify(Path("run")),
    )
    for stage in stages:
        seen.clear()
        stage()
        assert seen == {"medium"}
        assert torch.get_float32_matmul_precision() == "highest"
    assert record_of(Path("run"))["model"]["dtype"] == "float32, matrix products at medium precision"


def test_an_audit_of_any_model(at: Path, seen: set[str], expunge: Expunge, unrendered: None) -> None:
    assert audit(expunge, "other", "--no-base", "--attacks", "prune", "--set", "matmul_precision=medium") == 0
    assert seen == {"medium"}


def test_it_is_restored_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), matmul_precision("high", "cpu"):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"


def test_sums_stay_exact() -> None:
    """Factors are rounded to 8 bits, sums are not: the error of a product of many stays that of its factors."""
    many = 4096
    left, right = torch.rand(8, many, generator=torch.manual_seed(0)), torch.rand(many, 8)
    exact = left.double() @ right.double()
    with matmul_precision("medium", "cpu"):
        found = (left @ right).double()
    assert ((found - exact) / exact).abs().max() < 2**-8
