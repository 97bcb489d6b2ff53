"""Verdict cards, and the sentences under the charts: computed from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.report.figures import Labelled
from expunge.report.record import NO_CONTROL, Attack
from expunge.report.words import NONE, count, number, percent, plain, quantity, signed, visible

SIDE_BY_SIDE = 3
"""Up to so many runs are shown in full beside each other; more of them are compared in one table."""

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
    record, strongest = run.record, run.record.strongest
    attack = strongest if strongest and strongest.known else None
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
    """The page's title where none is given: the question, and the methods it is asked of, or their number."""
    few = len(runs) <= SIDE_BY_SIDE
    return f"Erased or hidden? {listed([run.label for run in runs]) if few else f'{len(runs)} runs compared'}"


def subject(runs: Sequence[Labelled]) -> list[str]:
    """What was done with what: model, data, facts and day, or their number where the runs differ."""
    records = [run.record for run in runs]
    parts = [
        (
            "models",
            [f"{visible(r.model.name, 80)}, {count(r.model.parameters)} parameters, {r.model.dtype}" for r in records],
        ),
        ("data sets", [plain(r.recipe.benchmark) for r in records]),
        ("sizes", [f"{r.scores.forget.before.n} facts to forget" for r in records]),
        ("days", [r.created[:10] for r in records]),
    ]
    unique = [(kind, [v for v in dict.fromkeys(values) if v]) for kind, values in parts]
    return [values[0] if len(values) == 1 else f"{len(values)} {kind}" for kind, values in unique if values]


def said_of_comparison(runs: Sequence[Labelled]) -> str:
    """What makes the runs unlike each other, beside their methods."""
    records = [run.record for run in runs]
    unlike = [
        ("models", len({(r.model.name, r.hashes.weights_before) for r in records})),
        ("facts to forget", len({r.hashes.data.get("forget") for r in records})),
        ("controls", len({r.control.kind for r in records})),
        ("attacks", len({tuple(sorted(a.name for a in r.attacks)) for r in records})),
    ]
    differ = [name for name, kinds in unlike if kinds > 1]
    return f"Compare with care: these runs differ in their {listed(differ)}." if differ else ""


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def said_of_attacks(runs: Sequence[Labelled]) -> str:
    """Which attack brought back most, per run."""
    found = [(run.label, run.record.strongest) for run in runs]
    said = [f"{label} {percent(a.recovery)} under {plain(a.name)}" for label, a in found if a and a.known]
    none = "No attack was run." if not any(a for _, a in found) else "Nothing was known that could come back."
    return f"Most came back: {'; '.join(said)}." if said else none


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
