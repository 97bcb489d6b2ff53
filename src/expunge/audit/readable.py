"""What a linear probe still reads of the forgotten facts, as a recovery like that of an attack.

    R = ( mean_i s_i(unlearned) - c ) / ( mean_i s_i(original) - c ),    s_i the probe's log-odds of fact i

    c = 0, which is ignorance, or mean_i s_i(control) where that is more: what is read of a model that never knew

Nothing is trained and nothing brought back: the states of the unlearned model are read by a classifier that learned
from facts that stay (`expunge.audit.probe`). It sees past everything that is done to the answer after the block that it
reads, such as a constant added to the states or the logits, which a short attack cannot move.

Which block is read must not be chosen by the number that is reported: half of the facts are read in the block that
reads the other half best, and the other way round.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

from expunge.audit.control import GOLD_MODEL, IGNORANCE, LEAST_ITEMS, Recovery, Tables, Values
from expunge.audit.probe import Probed

LEAST_READ = 1.0
"""Nats that the probe must read of the original; where it reads less, its silence about another model says nothing."""


def readable(
    after: Probed | None,
    before: Probed | None,
    control: Probed | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Recovery | None:
    """R of the module's formula; None where a probe asked too few facts, or read too little of the original.

    Args:
        after: of the unlearned model.
        before: of the original, asked the same.
        control: of a model that never knew, asked the same.
        level: coverage of the interval over the facts.
        seed: of the resampling.
    """
    if after is None or before is None or not after.items or not before.items:
        return None
    known, now = _across(before), _across(after)
    never, floor, kind = np.zeros(len(known)), after.chance, IGNORANCE
    if control is not None and control.items and (guessed := _across(control)).mean() > 0:
        never, floor, kind = guessed, fmean(control.accuracy), GOLD_MODEL
    if not LEAST_ITEMS <= len(known) == len(now) == len(never) or known.mean() - never.mean() < LEAST_READ:
        return None
    tables = Tables(now=now[None], never=never[None], known=known, start=never)
    share = (fmean(after.accuracy) - floor) / max(fmean(before.accuracy) - floor, 1e-9)
    return Recovery(
        *tables.share(level, seed),
        accuracy=share,
        items=len(now),
        seeds=1,
        control=kind,
        control_log_odds=float(never.mean()),
        control_accuracy=floor,
    )


def _across(probed: Probed) -> Values:
    """Log-odds of each fact, in the block that reads the facts of the other half best."""
    table = np.array(probed.items)
    if table.shape[1] < 2:
        return np.asarray(table.max(0))
    odd = np.arange(table.shape[1]) % 2 == 1
    chosen = np.where(odd, table[:, ~odd].mean(1).argmax(), table[:, odd].mean(1).argmax())
    return np.asarray(table[chosen, np.arange(table.shape[1])])
