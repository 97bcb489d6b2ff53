"""How a request holds in a model: its questions as they are, and after the attack that brought back most.

What came back is R of the audit (`audit.control`), by what the model said of each question, and of the same asked about
a made-up subject, before the request was carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import why_no_evidence
from expunge.audit.control import came_back
from expunge.continual.ledger import Known, Standing
from expunge.models.scores import ItemScore, Scores
from expunge.report.record import Score


def known(items: Sequence[ItemScore], twins: Mapping[str, ItemScore]) -> dict[str, Known]:
    """What there is to bring back, from the scores of the items, and of their twins by the id of the item."""
    guessed = {item: twin.log_odds for item, twin in twins.items()}
    return {item.id: Known(log_odds=item.log_odds, made_up=guessed.get(item.id)) for item in items}


def standing(now: Scores | Score, attacks: Iterable[AttackResult], knew: Mapping[str, Known]) -> Standing:
    """How a request stands whose questions score `now`, and after the one of `attacks` that brought back most.

    Attacks on which no verdict rests without a control (`why_no_evidence`) do not count here either.
    """
    found = Standing(accuracy=now.accuracy, log_odds=now.log_odds, chance=now.chance)
    before = {item: each.log_odds for item, each in knew.items()}
    twins = {item: each.made_up for item, each in knew.items() if each.made_up is not None}
    counted = [(came_back(a, before, twins), a) for a in attacks if not why_no_evidence(a, False)]
    if not counted:
        return found
    share, worst = max(counted, key=lambda pair: (pair[0] is not None, pair[0] or 0.0, pair[1].best.log_odds))
    return found.model_copy(update={"attack": worst.name, "attacked_log_odds": worst.best.log_odds, "recovery": share})
