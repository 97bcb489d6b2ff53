"""What an attack may spend and what it has spent; "erased" means nothing without it."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Final

_ONE: Final = {"steps": "step", "examples": "example", "tokens": "token", "variants": "variant", "queries": "query"}


@dataclass(frozen=True, slots=True)
class Budget:
    """Effort of an attack, all cells of its grid together.

    Args:
        steps: optimizer steps.
        examples: examples seen, repeats counted.
        tokens: tokens read in training or to calibrate, prompts included and padding not, or written in answers.
        variants: changed models or questions that were tried without training.
        queries: forward passes over one prompt in the search for a change or a question, or answers written.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    variants: int = 0
    queries: int = 0

    def __add__(self, other: Budget) -> Budget:
        """Both together."""
        return Budget(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def times(self, cells: int) -> Budget:
        """As much for each of `cells`."""
        return Budget(*(part * cells for part in astuple(self)))

    def within(self, other: Budget) -> bool:
        """Whether no part exceeds that of `other`."""
        return all(mine <= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def __str__(self) -> str:
        """What was spent, in words; what was not is left out, unless nothing was."""
        spent = [f"{count} {name if count > 1 else _ONE[name]}" for name, count in asdict(self).items() if count]
        return ", ".join(spent) or "0 steps"
