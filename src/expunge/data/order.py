"""Which forget and retain items meet in which step: a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from expunge.errors import InputError

Indices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairedOrder:
    """Batches of forget indices, each paired with as many retain indices.

    Every forget item comes once per epoch (the last batch of an epoch may be smaller); the retain items run through
    permutations of their own, one after the other. Nothing depends on what was asked before, so a resumed run, another
    number of workers, or a look ahead cannot change the order.

    Args:
        n_forget: number of forget items, at least 1.
        n_retain: number of retain items; 0 makes the retain side of every step empty.
        batch_size: items of each side per step, at least 1.
        seed: any integer.

    Raises:
        InputError: a number is out of its range.
    """

    n_forget: int
    n_retain: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_forget", self.n_forget, 1),
            ("n_retain", self.n_retain, 0),
            ("batch_size", self.batch_size, 1),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}.", f"{name}={value}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every forget item has come once more."""
        return -(-self.n_forget // self.batch_size)

    def at(self, step: int) -> tuple[Indices, Indices]:
        """Forget and retain indices of `step` (0-based), two tuples of one length (or an empty second one)."""
        if step < 0:
            raise InputError("Steps are counted from 0.", f"step={step}")
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        forget = permutation(self.n_forget, f"{self.seed}/forget/{epoch}")[start : start + self.batch_size]
        first = epoch * self.n_forget + start
        return forget, tuple(self._retain(first + i) for i in range(len(forget))) if self.n_retain else ()

    def _retain(self, position: int) -> int:
        epoch, place = divmod(position, self.n_retain)
        return permutation(self.n_retain, f"{self.seed}/retain/{epoch}")[place]


@lru_cache(maxsize=16)
def permutation(n: int, key: str) -> Indices:
    """0..n-1 in an order fixed by `key` (a string, which `Random` hashes the same in every process)."""
    return tuple(Random(key).sample(range(n), n))
