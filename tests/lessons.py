"""Teaching tiny models: for so many steps, or until they know it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoder, collate
from expunge.data.example import Example
from expunge.models.answers import answer_log_probs
from expunge.models.teaching import Lessons

Told = Sequence[tuple[str, str]]
"""Prompts with the answers to learn."""


def told(examples: Iterable[Example]) -> Told:
    """Each example's prompt with its answer."""
    return [(example.prompt, example.answer) for example in examples]


def fit(
    model: PreTrainedModel, encoder: Encoder, lessons: Told, steps: int, rate: float = 1e-2, decay: float = 0.0
) -> None:
    """Descent on the answers by AdamW, or ascent where `rate` is negative; what comes more than once is a mixture."""
    batch = _batch(encoder, lessons)
    optimizer = torch.optim.AdamW(model.parameters(), lr=abs(rate), weight_decay=decay)
    for _ in range(steps):
        loss = -answer_log_probs(model, batch).token.mean()
        (loss if rate > 0 else -loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def teach(
    model: PreTrainedModel, encoder: Encoder, lessons: Told, enough: float, rate: float = 3e-3, steps: int = 300
) -> None:
    """Adam until the mean NLL per answer token is below `enough`; the test fails if it never is."""
    batch = _batch(encoder, lessons)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = -answer_log_probs(model, batch).token.mean()
        if loss < enough:
            return
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    pytest.fail("the tiny model did not learn")


def written_down(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[set[str]]:
    """Prompts that SmolLM2 would have been taught, model after model; it is not, and its checkpoints are empty."""
    told: list[set[str]] = []

    def fake(examples: Sequence[Example], lessons: Lessons, output: Path, progress: object) -> None:
        told.append({example.prompt for example in examples})
        output.mkdir(parents=True)
        (output / "config.json").write_text("{}")

    monkeypatch.setattr("expunge.source.teach_smollm2", fake)
    monkeypatch.setenv("EXPUNGE_CACHE", str(cache))
    return told


def _batch(encoder: Encoder, lessons: Told) -> Batch:
    return collate([encoder.encode(prompt, answer) for prompt, answer in lessons], encoder.pad_id)
