"""The plain way to unlearn, which the peers take: what expunge's step is compared with.

Forget and retain examples in separate forwards, the head on every position, and for npo a second model that runs in
every step. As in OpenUnlearning every forward is `model(**inputs)` with labels, npo's too, which then takes the sum for
each sequence from the logits and leaves the model's own loss unused. All else is as in expunge: the same model in the
same dtype, fused AdamW, the same clipping. Only what is claimed to make a difference differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from expunge.data.collate import Batch

Loss = Callable[[PreTrainedModel, Batch, Batch], Tensor]


def labels(batch: Batch) -> Tensor:
    """[B, T] ids of the answer tokens, -100 elsewhere."""
    return batch.input_ids.masked_fill(~batch.answer_mask, -100)


def forward(model: PreTrainedModel, batch: Batch) -> CausalLMOutputWithPast:
    """Loss and logits of all positions."""
    out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels(batch))
    assert isinstance(out, CausalLMOutputWithPast)
    return out


def negative_log_likelihood(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean over the answer tokens, by the model's own loss."""
    loss = forward(model, batch).loss
    assert loss is not None
    return loss


def sequence_log_prob(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[B] log P of each answer, from the logits of all positions."""
    logits = forward(model, batch).logits
    assert logits is not None
    shifted, targets = logits[:, :-1].contiguous(), labels(batch)[:, 1:].contiguous()
    return -nn.functional.cross_entropy(shifted.transpose(1, 2), targets, reduction="none").sum(1)


def graddiff(model: PreTrainedModel, forget: Batch, retain: Batch) -> Tensor:
    """Ascent on the forget examples, descent on the retain examples."""
    return negative_log_likelihood(model, retain) - negative_log_likelihood(model, forget)


def npo(reference: PreTrainedModel, model: PreTrainedModel, forget: Batch, retain: Batch, beta: float = 0.1) -> Tensor:
    """Negative preference against a second model (arXiv:2404.05868), and descent on the retain examples."""
    with torch.no_grad():
        before = sequence_log_prob(reference, forget)
    log_ratio = sequence_log_prob(model, forget) - before
    preference = -2 / beta * nn.functional.logsigmoid(-beta * log_ratio).mean()
    return preference + negative_log_likelihood(model, retain)


def npo_with_second_model(model: PreTrainedModel) -> Loss:
    """The npo loss with a copy of `model` as it is now for reference."""
    return partial(npo, copy.deepcopy(model).requires_grad_(False))


class PlainStep:
    """One optimizer step on the same batch again and again; a vanishing learning rate keeps the problem the same."""

    def __init__(self, model: PreTrainedModel, loss: Loss, forget: Batch, retain: Batch) -> None:
        self.model, self.loss, self.forget, self.retain = model, loss, forget, retain
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.0, fused=True)

    def __call__(self) -> None:
        """Forward, backward, clip, step."""
        self.loss(self.model, self.forget, self.retain).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
