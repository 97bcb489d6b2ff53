"""Which forget, held and retain items meet in which step: a pure function of (seed, step)."""

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
    permutations of their own, one after the other. So do the held items, if there are any, which take half of the
    forget side of each step: however many earlier requests there were, a new one comes as often. Nothing depends on
    what was asked before, so a resumed run, another number of workers, or a look ahead cannot change the order.

    Args:
        n_forget: number of forget items, at least 1.
        n_retain: number of retain items; 0 makes the retain side of every step empty.
        batch_size: items of each side per step, at least 1.
        seed: any integer.
        n_held: number of held items; their indices follow those of the forget items.

    Raises:
        InputError: a number is out of its range.
    """

    n_forget: int
    n_retain: int
    batch_size: int
    seed: int
    n_held: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_forget", self.n_forget, 1),
            ("n_retain", self.n_retain, 0),
            ("batch_size", self.batch_size, 1),
            ("n_held", self.n_held, 0),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}.", f"{name}={value}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every forget item has come once more."""
        return -(-self.n_forget // self._own)

    @property
    def _held(self) -> int:
        """Held items of each step."""
        return min(self.n_held, self.batch_size // 2)

    @property
    def _own(self) -> int:
        """Forget items of each step but the last of an epoch."""
        return self.batch_size - self._held

    def at(self, step: int) -> tuple[Indices, Indices]:
        """Forget and retain indices of `step` (0-based), two tuples of one length (or an empty second one)."""
        if step < 0:
            raise InputError("Steps are counted from 0.", f"step={step}")
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self._own
        own = permutation(self.n_forget, f"{self.seed}/forget/{epoch}")[start : start + self._own]
        before = step * self._held
        held = tuple(self.n_forget + self._running("held", self.n_held, before + i) for i in range(self._held))
        forget, first = (*own, *held), epoch * self.n_forget + start + before
        places = range(len(forget)) if self.n_retain else ()
        return forget, tuple(self._running("retain", self.n_retain, first + i) for i in places)

    def _running(self, name: str, n: int, position: int) -> int:
        epoch, place = divmod(position, n)
        return permutation(n, f"{self.seed}/{name}/{epoch}")[place]


@lru_cache(maxsize=16)
def permutation(n: int, key: str) -> Indices:
    """0..n-1 in an order fixed by `key` (a string, which `Random` hashes the same in every process)."""
    return tuple(Random(key).sample(range(n), n))
