"""What a model is compared with, and which attacks on it a verdict may rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import why_no_evidence
from expunge.audit.alone import BEFORE, assumed_original, decide_alone
from expunge.audit.evidence import Evidence
from expunge.audit.verdict import Verdict, decide
from expunge.measure import Measured

Tries = Sequence[tuple[AttackResult, AttackResult | None]]
"""Attacks, each with the same one on the control, or None."""


def _by_evidence(evidence: Evidence, results: Sequence[AttackResult]) -> Verdict:
    """The verdict where the original was measured."""
    return decide(evidence)


@dataclass(frozen=True)
class Basis:
    """What the model is compared with.

    Args:
        measured: the original.
        judge: what the evidence and the attacks in it amount to.
        note: a sentence on the original, for the reader.
    """

    measured: Measured
    judge: Callable[[Evidence, Sequence[AttackResult]], Verdict] = _by_evidence
    note: str = ""

    @classmethod
    def assumed(cls, after: Measured) -> Basis:
        """An original that is not at hand, with what can be said without it; see `expunge.audit.alone`."""
        original = Measured(assumed_original(after.snapshot), {}, after.part)
        return cls(original, decide_alone, BEFORE)


def uncounted(attacks: Tries) -> list[str]:
    """Which attacks are no evidence, and why."""
    return [
        f"{result.name} does not count here: {why} It reached accuracy {result.best_accuracy.accuracy:.2f}."
        for result, control in attacks
        if (why := why_no_evidence(result, control is not None))
    ]
