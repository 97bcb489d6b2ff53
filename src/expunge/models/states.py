"""States of one block at all tokens, from a forward that goes no further; and of all blocks where a prompt ends.

    h_l[i, k]     output of block l at token k of row i, prompt and answer alike; padding is left out

An objective on such states needs neither the blocks after l nor the head, so the forward is left as soon as block l has
spoken: at layer 7 of 28 that is most of the price of a step. Only the fused rows are run, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.data.collate import Batch, Encoded, Encoder, join
from expunge.errors import InternalError
from expunge.models.answers import Answers, evaluating, length_sorted
from expunge.models.architecture import describe
from expunge.models.hooks import RESIDUAL, recording


@dataclass(frozen=True)
class BlockStates(Answers):
    """Rows that were read at a block and not at the head: answers without a token, and the states instead.

    `sequence` is 0 for each row and leads to no weight, so that whoever asks for a loss's gradient on it gets None.

    Args:
        states: the block's output at every token, row after row.
        lengths: tokens per row.
    """

    states: Float[Tensor, "positions d"]
    lengths: Int[Tensor, " batch"]

    def split(self, rows: int) -> tuple[BlockStates, BlockStates]:
        """The first `rows` rows and the rest."""
        n = int(self.lengths[:rows].sum())
        return (
            block_states(self.states[:n], self.lengths[:rows]),
            block_states(self.states[n:], self.lengths[rows:]),
        )


def block_states(states: Float[Tensor, "positions d"], lengths: Int[Tensor, " batch"]) -> BlockStates:
    """Rows of `lengths` tokens with these states, and no answer token."""
    numbers = lengths.new_zeros(0)
    nothing = torch.zeros(len(lengths), dtype=states.dtype, device=states.device, requires_grad=True)
    counts = torch.zeros_like(lengths)
    return BlockStates(nothing, states.new_zeros(0), numbers, numbers, states[:0], counts, states, lengths)


def read_states(backbone: nn.Module, block: nn.Module, batch: Batch) -> BlockStates:
    """The states of `block`, a part of `backbone`, at every token of the batch's rows."""
    hidden = _until(backbone, block, batch.input_ids)
    return block_states(hidden[batch.attention_mask.bool()], batch.attention_mask.sum(1))


def read_states_pair(
    backbone: nn.Module, block: nn.Module, forget: Batch | None, retain: Batch | None, pad_id: int
) -> tuple[BlockStates | None, BlockStates | None]:
    """The states of the sides that are there, from one fused forward."""
    if forget is not None and retain is not None:
        return read_states(backbone, block, join(forget, retain, pad_id)).split(len(forget))
    one, other = (None if side is None else read_states(backbone, block, side) for side in (forget, retain))
    return one, other


def cache_states(
    model: PreTrainedModel, backbone: nn.Module, block: nn.Module, batches: Iterable[Batch]
) -> tuple[Float[Tensor, "positions d"], ...]:
    """Each item's states, by the `index` of the batches: what must be kept of a model to compare with it later."""
    items: dict[int, Tensor] = {}
    with evaluating(model):
        for batch in batches:
            read = read_states(backbone, block, batch.to(model.device))
            items |= zip(batch.index.tolist(), torch.split(read.states, read.lengths.tolist()), strict=True)
    return tuple(items[i] for i in sorted(items))


def prompt_states(
    model: PreTrainedModel, encoder: Encoder, prompts: Sequence[str], batch_size: int = 32
) -> Float[Tensor, "blocks prompts d"]:
    """The residual stream after every block at the last token of each prompt, in float64 on the CPU."""
    arch = describe(model)
    encoded = [Encoded(ids := tuple(encoder.encode_prompt(prompt)), len(ids)) for prompt in prompts]
    places = [(block, RESIDUAL) for block in range(len(arch.blocks))]
    found = torch.zeros(len(places), len(prompts), model.config.hidden_size, dtype=torch.float64)
    with evaluating(model):
        for batch in length_sorted(encoded, encoder.pad_id, batch_size):
            with recording(arch, places) as seen:
                arch.backbone(input_ids=batch.input_ids.to(model.device), use_cache=False)
            last = batch.attention_mask.sum(1) - 1
            for block, place in enumerate(places):
                found[block, batch.index] = seen[place][torch.arange(len(batch)), last].double().cpu()
    return found


class _Reached(Exception):
    """The block has spoken: carries its output out of the backbone."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def _leave(block: nn.Module, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> Never:
    raise _Reached(output[0] if isinstance(output, tuple) else output)


def _until(backbone: nn.Module, block: nn.Module, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d"]:
    """The output of `block`. No attention mask: padding is on the right, where causal attention does not look."""
    leaving = block.register_forward_hook(_leave)  # the last hook: it meets what other hooks made of the output
    try:
        backbone(input_ids=ids, use_cache=False)
    except _Reached as reached:
        return reached.output
    finally:
        leaving.remove()
    raise InternalError("The forward never came to the block whose states are wanted.")
