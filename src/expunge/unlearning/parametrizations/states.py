"""Statistics of the outputs of chosen modules over the items of a run, from one forward of the backbone each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from expunge.data.collate import Batch
from expunge.models.answers import evaluating
from expunge.models.architecture import Architecture, with_states
from expunge.models.projections import project
from expunge.unlearning.parametrizations.subspace import Moments

Pool = Literal["answer", "content"]

LONE: Final = 512
"""Tokens whose states `lone_tokens` asks for."""


def lone_tokens(vocabulary: int) -> Batch:
    """Tokens, drawn with a fixed seed, as texts of one token each."""
    ids = torch.randint(vocabulary, (LONE, 1), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), torch.arange(LONE))


def pooled(batch: Batch, pool: Pool | Literal["first"], special_ids: frozenset[int]) -> Bool[Tensor, "batch time"]:
    """The positions that count: those that predict an answer token, or all that hold a token of the text.

    Padding and special tokens are no text. The first position never counts, as models keep there, BOS or not, a state
    of huge norm that says nothing; unless it is asked for, alone.
    """
    if pool == "first":
        chosen = torch.zeros_like(batch.answer_mask)
        chosen[:, 0] = True
        return chosen
    if pool == "answer":
        chosen = batch.answer_mask.roll(-1, 1)  # no answer begins at 0, so nothing comes round to the last position
    else:
        special = torch.tensor(sorted(special_ids), dtype=batch.input_ids.dtype, device=batch.input_ids.device)
        chosen = batch.attention_mask.bool() & ~torch.isin(batch.input_ids, special)
    chosen[:, 0] = False
    return chosen


def output_moments(
    arch: Architecture,
    modules: Mapping[int, nn.Module],
    d: int,
    pool: Pool | Literal["first"],
    special_ids: frozenset[int],
    removed: Mapping[int, Tensor],
    batches: Iterable[Batch],
    unit: bool = False,
) -> dict[int, Moments]:
    """Moments of the outputs of `modules`, of size d, by their keys, while each gives them without `removed`."""
    like = next(arch.backbone.parameters())
    found = {key: Moments(like, d, unit) for key in modules}
    with evaluating(arch.backbone), ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(_remove, removed[key])).remove)
        for batch in batches:
            moved = batch.to(like.device)
            chosen = pooled(moved, pool, special_ids)
            with ExitStack() as gathering:
                for key, module in modules.items():
                    gathering.callback(module.register_forward_hook(partial(_gather, found[key], chosen)).remove)
                arch.backbone(input_ids=moved.input_ids, use_cache=False)
    return found


def _remove(rows: Tensor, module: nn.Module, args: object, out: Any) -> Any:
    def left(states: Tensor) -> Tensor:
        return project(states, rows)

    return with_states(out, left) if len(rows) else out


def _gather(moments: Moments, chosen: Tensor, module: nn.Module, args: object, out: Any) -> Any:
    def counted(states: Tensor) -> Tensor:
        moments.add(states[chosen])
        return states

    return with_states(out, counted)
