"""Teaches facts to a pretrained model, so that there is something to forget, and a control that was never taught it.

L = - (1 / tokens) sum_t log P(y_t | x, y_<t)         AdamW, the learning rate falling linearly to 0
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.data.order import PairedOrder
from expunge.models.answers import answer_log_probs
from expunge.models.checkpoint import save_pretrained_atomic
from expunge.models.load import load_model
from expunge.models.memory import give_back_freed_memory
from expunge.models.smollm import SOURCE, fetch_smollm2
from expunge.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASK = "teach"


@dataclass(frozen=True, slots=True)
class Lessons:
    """How a model is taught."""

    epochs: int = 6
    batch_size: int = 8
    learning_rate: float = 2e-4
    seed: int = 0


def teach_smollm2(examples: Sequence[Example], lessons: Lessons, output: Path, progress: Progress) -> None:
    """Write SmolLM2-135M-Instruct, taught `examples`, to the folder `output`."""
    source = fetch_smollm2(progress=progress)
    loaded = load_model(source)
    teach(loaded.model, Encoder(loaded.tokenizer), examples, lessons, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_pretrained_atomic(loaded.model, loaded.tokenizer, output)
    shutil.copy(source / SOURCE, output / SOURCE)


def teach(
    model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example], lessons: Lessons, progress: Progress
) -> None:
    """Minimise L over `examples`, in place."""
    model.requires_grad_(True)
    encoded = [encoder.encode(example.prompt, example.answer) for example in examples]
    order = PairedOrder(len(examples), 0, lessons.batch_size, lessons.seed)
    steps = lessons.epochs * order.steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=lessons.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
    progress.start(TASK, steps)
    for step in range(steps):
        batch = collate([encoded[i] for i in order.at(step)[0]], encoder.pad_id).to(model.device)
        loss = -answer_log_probs(model, batch).token.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        give_back_freed_memory()
        progress.advance(TASK, loss=float(loss.detach()))
    progress.finish(TASK)
