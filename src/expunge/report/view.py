"""Verdict cards, and the sentences under the charts: computed from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.report.figures import Labelled
from expunge.report.record import NO_CONTROL, Attack
from expunge.report.words import NONE, number, percent, plain, quantity, signed, visible

MEANING = {
    "ERASED": "No attack tried here brought it back.",
    "HIDDEN": "Suppressed, not removed: an attack brings it back.",
    "NOT FORGOTTEN": "The model still knows what it was told to forget.",
    "BROKEN": "What had to stay was damaged.",
    "INCONCLUSIVE": "The evidence does not decide.",
}
GLYPH = {"ERASED": "empty", "HIDDEN": "half", "NOT FORGOTTEN": "full", "BROKEN": "cross", "INCONCLUSIVE": "dashed"}


@dataclass(frozen=True)
class Card:
    """The verdict on one run; low, mid, high: recovery on a bar from 0 to 100."""

    label: str
    verdict: str
    meaning: str
    glyph: str
    reasons: tuple[str, ...]
    attack: str
    recovery: str
    interval: str
    low: float
    mid: float
    high: float
    budget: str
    confidence: str


def card(run: Labelled) -> Card:
    """The verdict of `run` in words."""
    record, attack = run.record, run.record.strongest
    details = record.verdict_details
    mid = attack.recovery if attack else 0.0
    low = mid if attack is None or attack.recovery_low is None else attack.recovery_low
    high = mid if attack is None or attack.recovery_high is None else attack.recovery_high
    return Card(
        label=run.label,
        verdict=record.verdict,
        meaning=MEANING[record.verdict],
        glyph=GLYPH[record.verdict],
        reasons=tuple(visible(r) for r in details.reasons),
        attack=plain(attack.name) if attack else "",
        recovery=percent(mid) if attack else NONE,
        interval=interval(attack) if attack else "",
        low=_on_bar(low),
        mid=_on_bar(mid),
        high=_on_bar(high),
        budget=visible(details.budget).rstrip("."),
        confidence=visible(details.confidence).rstrip("."),
    )


def _on_bar(share: float) -> float:
    """A share as a position from 0 to 100."""
    return round(100 * min(1.0, max(0.0, share)), 1)


def interval(attack: Attack) -> str:
    """`43 to 81 %`, or nothing where no interval was measured."""
    if attack.recovery_low is None or attack.recovery_high is None:
        return ""
    return f"{percent(attack.recovery_low).split()[0]} to {percent(attack.recovery_high)}"


def heading(runs: Sequence[Labelled]) -> str:
    """The page's title where none is given: the question, and the methods it is asked of."""
    return f"Erased or hidden? {listed([run.label for run in runs])}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def said_of_attacks(runs: Sequence[Labelled]) -> str:
    """Which attack brought back most, per run."""
    found = [(run.label, run.record.strongest) for run in runs]
    said = [f"{label} {percent(a.recovery)} under {plain(a.name)}" for label, a in found if a]
    return f"Most came back: {'; '.join(said)}." if said else "No attack was run."


def said_of_control(runs: Sequence[Labelled]) -> str:
    """What the control is, in the records' own sentences."""
    measured = any(run.record.control.kind != NO_CONTROL for run in runs)
    mark = "Diamonds mark the control. " if measured else "The dashed line is also the control. "
    return mark + " ".join(dict.fromkeys(visible(run.record.control.sentence) for run in runs))


def said_of_influence(runs: Sequence[Labelled]) -> str:
    """Erased against hidden at m = 100, per quantity and run, and the warning about saturated pairs."""
    said = []
    for found in zip(*(run.record.influences for run in runs), strict=True):
        shares = [
            f"{run.label} erased {number(i.erased)}, hidden {number(i.hidden)}"
            for run, i in zip(runs, found, strict=True)
            if i
        ]
        of = next((quantity(i.of) for i in found if i), "")
        said += [f"Of the {of}, at the mark: {'; '.join(shares)}."] if shares else []
    certain = [f"{r.label} {percent(i.saturated_share)}" for r in runs if (i := r.record.influence)]
    said += [f"Pairs too certain for the probability to tell: {', '.join(certain)}."] if certain else []
    return " ".join(said)


def said_of_grain(runs: Sequence[Labelled]) -> str:
    """How much one fact weighs in the smallest set that an attack was scored on; empty where no attack was run."""
    sizes = [a.start.n for run in runs for a in run.record.attacks if a.start.n]
    if not sizes:
        return ""
    return f"Small sets are coarse: with {min(sizes)} facts, one fact is {percent(1 / min(sizes))} of accuracy."


def said_of_probe(runs: Sequence[Labelled]) -> str:
    """What the best layer gives away before and after, per run, and how many facts could be asked."""
    said = [
        f"{run.label} {signed(max(probe.before))} before, {signed(max(probe.after))} after ({probe.n} facts)"
        for run in runs
        if (probe := run.record.probe)
    ]
    return f"Log-odds in the best layer: {'; '.join(said)}."


def said_of_lens(runs: Sequence[Labelled]) -> str:
    """Where the last layer ends, and what it means to be under one half."""
    said = []
    for run in runs:
        lens = run.record.logit_lens
        if lens is None or not lens.after:
            continue
        end = lens.after[-1]
        side = "below chance, which is itself a trace" if end < 0.4 else "near chance" if end < 0.6 else "above chance"
        said.append(f"{run.label} ends at {percent(end)}, {side}")
    return "; ".join(said) + "."
