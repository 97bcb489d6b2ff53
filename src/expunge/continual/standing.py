"""How a request holds in a model: its questions as they are, and after the attack that brought back most.

    R = max( s(attacked) / s(before), lead(attacked) / lead(before) )

s is the mean log-odds of the questions, lead how far those that have a made-up twin (`data.twins`) stand above it, each
at the moment of the attack where it is highest, before: when the request had not been carried out. The larger one
counts, as in `audit.control`: an answer that is only disliked is disliked for made-up subjects too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import why_uncounted
from expunge.audit.control import LEAST_KNOWLEDGE, MOST_ITEMS
from expunge.continual.ledger import Standing
from expunge.models.scores import ItemScore, Scores, summarise
from expunge.report.record import Score


@dataclass(frozen=True)
class Known:
    """What there was to bring back, nats per token.

    Args:
        log_odds: mean over the forget items, before anything was done.
        lead: of those that have a twin over these; None where too few of them have one.
    """

    log_odds: float
    lead: float | None = None

    @classmethod
    def of(cls, items: Sequence[ItemScore], twins: Mapping[str, ItemScore]) -> Self:
        """From the scores of the items, and of their twins by the id of the item."""
        have = [item for item in items if item.id in twins]
        lead = fmean(item.log_odds - twins[item.id].log_odds for item in have) if have else None
        return cls(summarise(items).log_odds, lead if len(have) >= MOST_ITEMS * len(items) else None)

    def share(self, result: AttackResult) -> float | None:
        """R of an attack; None where nothing was known."""
        found = []
        if self.log_odds >= LEAST_KNOWLEDGE:
            found.append(result.best.log_odds / self.log_odds)
        if self.lead is not None and self.lead >= LEAST_KNOWLEDGE and (leads := result.leads()):
            found.append(max(leads) / self.lead)
        return max(found, default=None)


def standing(now: Scores | Score, attacks: Iterable[AttackResult], known: Known) -> Standing:
    """How a request stands whose questions score `now`, and after the one of `attacks` that brought back most.

    Attacks on which no verdict rests without a control (`why_uncounted`) do not count here either.
    """
    found = Standing(accuracy=now.accuracy, log_odds=now.log_odds, chance=now.chance)
    counted = [(known.share(result), result) for result in attacks if not why_uncounted(result.name, False)]
    if not counted:
        return found
    share, worst = max(counted, key=lambda pair: (pair[0] is not None, pair[0] or 0.0, pair[1].best.log_odds))
    return found.model_copy(update={"attack": worst.name, "attacked_log_odds": worst.best.log_odds, "recovery": share})
