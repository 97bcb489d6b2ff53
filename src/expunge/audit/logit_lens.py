"""From which layer on the answer can be read: the residual stream, through the final norm and the unembedding.

    accuracy_l = share of examples with  head(norm(r_l)) [gold]  >  head(norm(r_l)) [distractor]

r_l is the residual stream after block l, at the position that predicts the first token by which the answer and one
random wrong answer differ; up to there both read the same, so one forward serves both. Chance is 1/2; well below it, a
model is inverted rather than ignorant, and that is detectable (arXiv:2509.22263).

The values come from hooks on the blocks, not from `hidden_states`, whose last entry has been through the norm already.
Only two rows of the head are applied, to one position per example; a soft cap on the logits would keep their order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.data.collate import Batch, Encoded
from expunge.models.answers import evaluating, length_sorted
from expunge.models.architecture import Architecture, base_linear, describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example


@dataclass(frozen=True, slots=True)
class Contrast:
    """Where an answer and a wrong one part: the common text `context`, and the token that each goes on with."""

    context: tuple[int, ...]
    gold: int
    distractor: int


def logit_lens(
    model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example], seed: int = 0, *, batch_size: int = 32
) -> tuple[float, ...]:
    """Per block, the share of examples whose answer beats one random wrong answer; ties count one half.

    The wrong answer is one of the example's options, else the answer of another example, drawn by `seed` and the
    example's id, so that two models meet the same ones. Examples without a wrong answer that parts from theirs are left
    out; where none is left, nothing can be compared and the result is empty.
    """
    contrasts = [c for c in (_contrast(encoder, example, examples, seed) for example in examples) if c is not None]
    if not contrasts:
        return ()
    arch = describe(model)
    encoded = [Encoded(contrast.context, len(contrast.context)) for contrast in contrasts]
    tokens = torch.tensor([(contrast.gold, contrast.distractor) for contrast in contrasts], device=model.device)
    with evaluating(model):
        batches = (batch.to(model.device) for batch in length_sorted(encoded, encoder.pad_id, batch_size))
        wins = torch.stack([_wins(arch, batch, *tokens[batch.index].T) for batch in batches]).sum(0)
    return tuple((wins / len(contrasts)).tolist())


def _contrast(encoder: Encoder, example: Example, others: Sequence[Example], seed: int) -> Contrast | None:
    """The first random wrong answer that parts from the right one, or None."""
    wrong = sorted(set(example.options or [other.answer for other in others]) - {example.answer})
    random.Random(f"{seed} {example.id}").shuffle(wrong)
    gold = encoder.encode(example.prompt, example.answer)
    for answer in wrong:
        other = encoder.encode(example.prompt, answer)
        parting = next((i for i, (a, b) in enumerate(zip(gold.ids, other.ids, strict=False)) if a != b), 0)
        # Earlier than in the answers they part where a long prompt was cut, elsewhere for each of them.
        if parting >= max(gold.answer_start, other.answer_start):
            return Contrast(gold.ids[:parting], gold.ids[parting], other.ids[parting])
    return None


def _wins(arch: Architecture, batch: Batch, gold: Tensor, distractor: Tensor) -> Tensor:
    """[layers] in how many rows the gold token beats the distractor after the row's last token, for each block."""
    rows, last = torch.arange(len(batch), device=gold.device), batch.attention_mask.sum(1) - 1
    residuals: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        residuals.append(hidden[rows, last])

    with ExitStack() as hooks:
        for block in arch.blocks:
            hooks.callback(block.register_forward_hook(keep).remove)
        arch.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    head = base_linear(arch.head)
    direction = head.weight[gold].float() - head.weight[distractor].float()
    offset = 0.0 if head.bias is None else head.bias[gold].float() - head.bias[distractor].float()
    margins = torch.stack([(arch.norm(residual).float() * direction).sum(-1) + offset for residual in residuals])
    return ((margins > 0).double() + (margins == 0).double() / 2).sum(1).cpu()
