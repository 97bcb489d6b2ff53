"""What unlearning cost: knowledge that had to stay, and plain language."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.models.answers import TextStatistics
from expunge.models.scores import Scores

LEAST_MARGIN = 0.1
"""A set whose accuracy was not this far above chance before cannot tell what was lost."""


@dataclass(frozen=True)
class Kept:
    """A set of items that had to stay, before and after unlearning."""

    name: str
    before: Scores
    after: Scores

    @property
    def margin_lost(self) -> float:
        """Share of the accuracy above chance that is gone: 0 = none, 1 = all; NaN where there was hardly any."""
        margin = self.before.accuracy - self.before.chance
        return (self.before.accuracy - self.after.accuracy) / margin if margin >= LEAST_MARGIN else math.nan


@dataclass(frozen=True)
class Language:
    """Plain text before and after; `kl` = KL(before || after) in nats per token, None where it was not measured."""

    perplexity_before: float
    perplexity_after: float
    kl: float | None = None

    @classmethod
    def of(cls, before: TextStatistics, after: TextStatistics) -> Language:
        """From the statistics of both models; those of `after` carry the divergence."""
        return cls(before.perplexity, after.perplexity, after.kl)

    @property
    def factor(self) -> float:
        """Perplexity after divided by perplexity before; infinite for a model that says nothing sensible any more."""
        factor = self.perplexity_after / self.perplexity_before
        return factor if math.isfinite(factor) else math.inf
