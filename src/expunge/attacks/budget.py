"""What an attack may spend and what it has spent; "erased" means nothing without it."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """Training effort of an attack, all cells of its grid together.

    Args:
        steps: optimizer steps.
        examples: examples seen, repeats counted.
        tokens: tokens read in training, prompts included and padding not.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0

    def __add__(self, other: Budget) -> Budget:
        """Both together."""
        return Budget(self.steps + other.steps, self.examples + other.examples, self.tokens + other.tokens)

    def times(self, cells: int) -> Budget:
        """As much for each of `cells`."""
        return Budget(self.steps * cells, self.examples * cells, self.tokens * cells)

    def within(self, other: Budget) -> bool:
        """Whether no part exceeds that of `other`."""
        return all(mine <= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.examples} examples, {self.tokens} tokens"
