"""What a verdict rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from expunge.attacks.budget import Budget
from expunge.audit.control import LEAST_ITEMS, Recovery, residual
from expunge.audit.readable import readable
from expunge.audit.snapshot import Snapshot
from expunge.audit.utility import Kept, Language
from expunge.models.scores import Scores, summarise
from expunge.request import RETAIN_GROUPS

PROBE: Final = "linear-probe"
"""Stands among the attacks: it brings nothing back, but says that something is there to be brought back."""


@dataclass(frozen=True)
class Tried:
    """An attack that was run: what it brought back and what it spent."""

    name: str
    recovery: Recovery
    spent: Budget


@dataclass(frozen=True)
class Said:
    """Share of the answers that the model's own words have when it is asked (ROUGE-L recall), before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Args:
        before: forget scores of the original.
        after: forget scores of the unlearned model, before any attack.
        residual: R before any attack, with the control's scores.
        attacks: all attacks that were run; asking for the facts in other words (`residual` of a test group) and
            reading the states (`PROBE`) are such that spend nothing.
        kept: sets that had to stay; never paraphrases or other tests of the forgotten facts.
        language: plain text, None where it was not measured.
        said: what the model says by itself, None where it was not asked.
    """

    before: Scores
    after: Scores
    residual: Recovery
    attacks: tuple[Tried, ...] = ()
    kept: tuple[Kept, ...] = ()
    language: Language | None = None
    said: Said | None = None

    @property
    def strongest(self) -> Tried | None:
        """The attack of the highest R."""
        return max(self.attacks, key=lambda tried: tried.recovery.value, default=None)

    @property
    def probed(self) -> bool:
        """Whether the linear probe read the states."""
        return any(tried.name == PROBE for tried in self.attacks)

    @property
    def sighted(self) -> bool:
        """Whether something looked behind the answers: the probe, or made-up subjects with the same answers."""
        return self.probed or any(tried.recovery.twinned for tried in self.attacks)

    @property
    def inversion(self) -> float:
        """Nats by which the log-odds lie below the control's; negative where they lie above."""
        return self.residual.control_log_odds - self.after.log_odds


def gather(
    before: Snapshot,
    after: Snapshot,
    left: Recovery,
    attacks: Sequence[Tried],
    control: Snapshot | None = None,
) -> Evidence:
    """The evidence in two measured models and what attacks brought back; `left` is R before any attack.

    What costs nothing beyond the snapshots, the facts in other words and the probe, joins the attacks if there are any.
    Their control is ignorance or `control`, a model that never knew, whichever stands higher: what can be guessed from
    what stays did not come back.
    """
    sets = {"retain": (before.retain, after.retain)}
    sets |= {name: (before.test[name], after.test[name]) for name in RETAIN_GROUPS if name in before.test}
    free = {
        "paraphrase": _reworded(after, before, control),
        PROBE: readable(after.probe, before.probe, control.probe if control else None),
    }
    beside = [Tried(name, share, Budget()) for name, share in free.items() if share is not None]
    spoken = before.rouge_l and after.rouge_l
    return Evidence(
        before=summarise(before.forget),
        after=summarise(after.forget),
        residual=left,
        attacks=(*attacks, *(beside if attacks else ())),
        kept=tuple(Kept(name, summarise(one), summarise(other)) for name, (one, other) in sets.items() if one),
        language=Language.of(before.text, after.text) if before.text and after.text else None,
        said=Said(fmean(before.rouge_l.values()), fmean(after.rouge_l.values())) if spoken else None,
    )


def _reworded(after: Snapshot, before: Snapshot, control: Snapshot | None) -> Recovery | None:
    """R of the facts in other words, without any attack; None where too few were asked."""
    asked = [item for item in after.test.get("paraphrase", ()) if item.option_log_probs]
    known = before.test.get("paraphrase", ())
    if len(asked) < LEAST_ITEMS:
        return None
    never = control.test.get("paraphrase", ()) if control else ()
    return residual(asked, known, never if never and summarise(never).log_odds > 0 else None)
