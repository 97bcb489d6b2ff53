"""From records to the panels of what came back, with limits shared by all records so that methods compare."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.report import attack_charts, comeback, grammar
from expunge.report.attack_charts import Dot, Line, Point
from expunge.report.canvas import to_svg
from expunge.report.compare import Standing
from expunge.report.figures import Labelled, Panel
from expunge.report.grammar import Limits
from expunge.report.record import Attack, Record
from expunge.report.words import percent, plain, visible

VARIANTS = 16


def recovery_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Recovery of every attack, where it means something, with its interval, the highest first; one panel per run."""
    rows = [[_dot(attack) for attack in run.record.ranked if attack.known] for run in runs]
    limits = grammar.padded(
        [-0.02, *(v for dots in rows for d in dots for v in (d.recovery, d.low, d.high) if v is not None)]
    )
    panels = []
    for i, (run, dots) in enumerate(zip(runs, rows, strict=True)):
        if dots:
            figure = attack_charts.recoveries(dots, limits, _thresholds(run.record))
            words = "; ".join(f"{dot.name} {percent(dot.recovery)}" for dot in dots)
            panels.append(Panel(f"{run.label}: recovery", to_svg(figure, f"recovery{i}", f"{run.label}: {words}")))
    return panels


def _dot(attack: Attack) -> Dot:
    """Hollow where it decides nothing."""
    low, high = attack.recovery_low, attack.recovery_high
    return Dot(plain(attack.name), attack.recovery, low, high, hollow=not attack.counts)


def _thresholds(record: Record) -> Limits:
    return record.verdict_details.hidden_above, record.verdict_details.erased_below


def budget_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """The most that came back so far against the training examples spent, one panel per run."""
    drawn = [(i, run, _lines(run.record)) for i, run in enumerate(runs)]
    limits = grammar.padded(
        [v for _, _, lines in drawn for line in lines for m in line.moments for v in (m.recovery, m.control)] + [1.0]
    )
    panels = []
    for i, run, lines in drawn:
        if lines:
            words = "; ".join(
                f"{line.name} {percent(line.moments[-1].recovery)} after {line.moments[-1].examples} examples"
                for line in lines
            )
            figure = attack_charts.budgets(lines, limits, _thresholds(run.record))
            panels.append(Panel(f"{run.label}: what it takes", to_svg(figure, f"budget{i}", f"{run.label}: {words}")))
    return panels


def _lines(record: Record) -> list[Line]:
    """One for each attack that trains, the highest recovery first."""
    found = [(attack, comeback.course(record, attack)) for attack in record.ranked]
    return [
        Line(plain(attack.name.removeprefix("relearn-")), moments, control=bool(attack.control.curve))
        for attack, moments in found
        if moments
    ]


def sweep_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """One panel for each attack and run that tried variants; the trials in their order, of many the highest."""
    names = dict.fromkeys(a.name for run in runs for a in run.record.ranked if a.sweeps)
    drawn = [
        (k, i, run, attack, comeback.shares(run.record, attack))
        for k, name in enumerate(names)
        for i, run in enumerate(runs)
        for attack in run.record.attacks
        if attack.name == name and attack.sweeps
    ]
    left = [p.original for *_, attack, _ in drawn for p in attack.curve if p.step and p.original is not None]
    limits = grammar.padded([-0.02, *left, *(share for *_, shares in drawn for share in shares)])
    panels = []
    for k, i, run, attack, shares in drawn:
        trials = [(p, share) for p, share in zip(attack.curve, shares, strict=False) if p.step]
        start = next((share for p, share in zip(attack.curve, shares, strict=False) if not p.step), None)
        best = sorted(trials, key=lambda trial: -trial[1])[:VARIANTS]
        dots = [Dot(visible(p.variant, 80), share, original=p.original) for p, share in trials if (p, share) in best]
        if dots:
            words = "; ".join(map(_words, dots))
            title = f"{run.label}: {plain(attack.name)}"
            some = f", the highest {len(dots)} of {len(trials)}" if len(dots) < len(trials) else ""
            figure = attack_charts.sweep(dots, start, limits)
            panels.append(Panel(title + some, to_svg(figure, f"sweep{k}-{i}", f"{title}{some}: {words}")))
    return panels


def _words(dot: Dot) -> str:
    left = "" if dot.original is None else f" (the original {percent(dot.original)})"
    return f"{dot.name} {percent(dot.recovery)}{left}"


def pareto_panels(standings: Sequence[Standing]) -> list[Panel]:
    """Retention against recovery of all runs that have both; no panel where fewer than two do."""
    points = [
        Point(s.label, s.verdict, s.recovery, s.retention, s.dominated, f"run-{s.place}")
        for s in standings
        if s.recovery is not None and s.retention is not None
    ]
    if len(points) < 2:
        return []
    recovery = grammar.padded([-0.03, *(p.recovery for p in points)], 0.1)
    kept = [p.retention for p in points]
    air = max(0.04, 0.1 * (max(kept) - min(kept)))
    figure = attack_charts.pareto(points, recovery, (min(kept) - air, max(kept) + air))
    words = "; ".join(f"{p.name} {percent(p.retention)} kept, {percent(p.recovery)} came back" for p in points)
    wide = len(points) > attack_charts.FEW
    return [Panel("What stayed against what came back", to_svg(figure, "pareto", words), wide)]
