"""The processes that share a run: each takes its rows of every step, and sums go over all of them."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `world` of them, numbered from 0; 0 is the one that writes."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, turned in place into its sum over all processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes through the block first, so that the others find what it has fetched or trained."""
    from accelerate import PartialState

    join_processes()
    with PartialState().main_process_first():
        yield


def join_processes() -> tuple[Processes, torch.device]:
    """This process as `accelerate launch` has set it up, a single one otherwise, and the device it is to use."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without the flag PartialState takes a launch on CPUs for single processes, each of which would train on its own.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if state.num_processes > 1:
        _leave_at_exit()
    return Processes(state.process_index, state.num_processes), state.device


@cache
def _leave_at_exit() -> None:
    """A process that ends with its group still open is now and then aborted by the group's threads."""
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
