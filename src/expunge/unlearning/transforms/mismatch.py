"""Questions with answers of other facts, made from the rows that a transform is shown."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from expunge.data.collate import Batch, Encoded
from expunge.errors import InputError

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Site

Answer = tuple[int, ...]


def encoded(rows: Batch) -> list[Encoded]:
    """The rows as they were before they were padded."""
    lengths, starts = rows.attention_mask.sum(1).tolist(), rows.answer_mask.int().argmax(1).tolist()
    return [
        Encoded(tuple(ids[:n]), start) for ids, n, start in zip(rows.input_ids.tolist(), lengths, starts, strict=True)
    ]


def all_answers(batches: Sequence[Batch], site: Site) -> list[Answer]:
    """The answers of the items of all processes by their index; () where there is no such item."""
    own = {
        int(i): item.ids[item.answer_start :]
        for rows in batches
        for i, item in zip(rows.index, encoded(rows), strict=True)
    }
    device = next(iter(site.parameters.values())).device
    sizes = [max(own, default=-1) + 1, max(map(len, own.values()), default=0)]
    # A sum of sizes over the processes is at least their largest; ids are counted from 1, as 0 is "not mine".
    table = torch.zeros(*site.reduce(torch.tensor(sizes, device=device)).tolist(), dtype=torch.long, device=device)
    holders = torch.zeros(len(table), 1, dtype=torch.long, device=device)
    for index, answer in own.items():
        table[index, : len(answer)] = torch.tensor(answer, device=device) + 1
        holders[index] = 1
    found = site.reduce(table) // site.reduce(holders).clamp(min=1)
    return [tuple(i - 1 for i in row if i) for row in found.tolist()]


def mismatched(index: int, answers: Sequence[Answer], count: int, seed: int) -> list[Answer]:
    """At most `count` different answers other than that of the item `index`, drawn with `seed`.

    Raises:
        InputError: there is none.
    """
    others = sorted(set(answers) - {answers[index], ()})
    if not others:
        raise InputError(
            "All forget facts have the same answer, so no question can be put together with a wrong one.",
            fix="Give forget facts with at least two different answers.",
        )
    return random.Random(f"{seed}/{index}").sample(others, min(count, len(others)))
