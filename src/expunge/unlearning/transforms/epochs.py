"""All rows of one side, each process its own, as a transform may gather them in the first step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from expunge.data.collate import Batch
    from expunge.unlearning.transforms.base import Site, Step


def forget_epoch(step: Step) -> Iterator[Batch]:
    """The forget rows of the coming epoch: each item once, if `step` begins one; held ones as often as they come."""
    for ahead in range(step.steps_per_epoch):
        yield from step.rows("forget", ahead)


def retain_epoch(step: Step, site: Site) -> Iterator[Batch]:
    """The retain rows of the steps up to the first that brings no new item to any process.

    The order of a run goes through the items in permutations, so none is missing; those of the step in which the second
    permutation begins may come twice. Nothing comes for an objective that uses no retain items.
    """
    device = next(iter(site.parameters.values())).device
    seen = torch.zeros(0, dtype=torch.long, device=device)
    for ahead in count():
        batches = list(step.rows("retain", ahead))
        met = _met(batches, len(seen), site, device)
        before = torch.zeros_like(met)
        before[: len(seen)] = seen
        if not bool(((met > 0) & (before == 0)).any()):
            return
        seen = before + met
        yield from batches


def _met(batches: Sequence[Batch], least: int, site: Site, device: torch.device) -> Tensor:
    """How often each item is in the batches of all processes; at least `least` long."""
    own = torch.cat([torch.zeros(0, dtype=torch.long), *(batch.index.cpu() for batch in batches)])
    # The sum over the processes is at least the largest of their sizes, and the same for all of them.
    size = int(site.reduce(torch.tensor(int(own.max()) + 1 if len(own) else 0, device=device)))
    return site.reduce(torch.bincount(own, minlength=max(size, least)).to(device))
