"""What a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.attacks.budget import Budget
from expunge.audit.control import Recovery
from expunge.audit.utility import Kept, Language
from expunge.models.scores import Scores


@dataclass(frozen=True)
class Tried:
    """An attack that was run: what it brought back and what it spent."""

    name: str
    recovery: Recovery
    spent: Budget


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Args:
        before: forget scores of the original.
        after: forget scores of the unlearned model, before any attack.
        residual: R before any attack, with the control's scores.
        attacks: all attacks that were run; asking for the facts in other words (`residual` of a test group) is one
            that spends nothing.
        kept: sets that had to stay; never paraphrases or other tests of the forgotten facts.
        language: plain text, None where it was not measured.
    """

    before: Scores
    after: Scores
    residual: Recovery
    attacks: tuple[Tried, ...] = ()
    kept: tuple[Kept, ...] = ()
    language: Language | None = None

    @property
    def strongest(self) -> Tried | None:
        """The attack of the highest R."""
        return max(self.attacks, key=lambda tried: tried.recovery.value, default=None)

    @property
    def inversion(self) -> float:
        """Nats by which the log-odds lie below the control's; negative where they lie above."""
        return self.residual.control_log_odds - self.after.log_odds
