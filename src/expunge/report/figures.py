"""From records to panels: which chart is drawn of what, with limits shared by all records so that methods compare."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from expunge.report import charts, grammar
from expunge.report.canvas import to_svg
from expunge.report.charts import Bar, Frame, Pair
from expunge.report.grammar import Limits
from expunge.report.record import NO_CONTROL, SHOULD_GO, SHOULD_STAY, Attack, Change, Influence, Record, Score
from expunge.report.words import number, percent, plain, quantity, signed
from expunge.request import had_to_go


@dataclass(frozen=True)
class Panel:
    """One chart under its heading; a wide one takes the whole column, and scrolls where that is too narrow."""

    title: str
    svg: Markup
    wide: bool = False


@dataclass(frozen=True)
class Labelled:
    """A record and the short name that tells it from the others on the page."""

    label: str
    record: Record


def labelled(records: Sequence[Record]) -> tuple[Labelled, ...]:
    """Records with their method as label; where methods repeat, with what tells them apart."""
    labels = [plain(record.recipe.method) or "unnamed method" for record in records]
    for tell in TELLING:
        marks = [tell(record) for record in records]
        for label, times in Counter(labels).items():
            same = [i for i, other in enumerate(labels) if other == label]
            if times > 1 and len({marks[i] for i in same}) > 1:
                for i in same:
                    labels[i] += marks[i]
    repeated = {label for label, times in Counter(labels).items() if times > 1}
    names = [f"{label} ({i})" if label in repeated else label for i, label in enumerate(labels, 1)]
    return tuple(Labelled(name, record) for name, record in zip(names, records, strict=True))


def _transform(record: Record) -> str:
    """Names of the gradient transforms, without their settings."""
    names = re.findall(r"\b[A-Z]\w*(?=\()", record.recipe.transform)
    return f" with {plain(', '.join(names))}" if names else ""


def _seed(record: Record) -> str:
    """That of the data, by which grids tell their runs apart, else that of the loop."""
    seed = record.seeds.get("data", record.seeds.get("unlearning"))
    return "" if seed is None else f", seed {plain(str(seed))}"


def _run(record: Record) -> str:
    return f" · {plain(record.name)}" if record.name else ""


TELLING: tuple[Callable[[Record], str], ...] = (_transform, _seed, _run)


def level_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Log-odds, then accuracy, of the forget facts: before, after, after each attack."""
    odds, share = odds_limits([r.record for r in runs]), (0.0, 1.0)
    panels = []
    for metric, limits, show in (("log_odds", odds, signed), ("accuracy", share, percent)):
        for i, run in enumerate(runs):
            bars = _bars(run.record, metric)
            guess = 0.0 if metric == "log_odds" else run.record.scores.forget.before.chance
            name = "ignorance" if metric == "log_odds" else "chance"
            noun = metric.replace("_", "-")
            words = "; ".join(f"{bar.name} {show(bar.value)}" for bar in bars)
            figure = charts.levels(bars, limits, guess, name, show)
            label = f"{run.label}, {noun} of the facts to forget: {words}"
            panels.append(Panel(f"{run.label}: {noun}", to_svg(figure, f"{metric}{i}", label)))
    return panels


def _bars(record: Record, metric: str) -> list[Bar]:
    """Levels of one metric; the control is drawn only where a control model was measured."""
    forget = record.scores.forget
    bars = [_bar("before", "before", forget.before, metric), _bar("after", "after", forget.after, metric)]
    measured = record.control.kind != NO_CONTROL
    for attack in record.ranked:
        control = (attack.control.log_odds if metric == "log_odds" else attack.control.accuracy) if measured else None
        bars.append(_bar(plain(attack.name), "attack", attack, metric, control))
    return bars


def _bar(name: str, role: str, of: Score | Attack, metric: str, control: float | None = None) -> Bar:
    """One level of `metric` with its bounds."""
    if metric == "log_odds":
        return Bar(name, role, of.log_odds, of.log_odds_low, of.log_odds_high, control)
    return Bar(name, role, of.accuracy, of.accuracy_low, of.accuracy_high, control)


def odds_limits(records: Sequence[Record]) -> Limits:
    """Limits of log-odds that hold every level, bound and curve of all records."""
    values: list[float | None] = []
    for record in records:
        forget = record.scores.forget
        values += [v for s in (forget.before, forget.after) for v in (s.log_odds, s.log_odds_low, s.log_odds_high)]
        values += [v for a in record.attacks for v in (a.log_odds, a.log_odds_low, a.log_odds_high)]
        values += [p.log_odds for p in record.training.history]
        for attack in record.attacks:
            values += [attack.control.log_odds, *(p.log_odds for p in (*attack.curve, *attack.control.curve))]
    return grammar.padded([v for v in values if v is not None])


def curve_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """The way down, then one panel per attack with a curve; the runs side by side."""
    odds = odds_limits([r.record for r in runs])
    down = [(i, run) for i, run in enumerate(runs) if run.record.training.history]
    steps = max((p.step for _, run in down for p in run.record.training.history), default=1)
    panels = []
    for i, run in down:
        training, before = run.record.training, run.record.scores.forget.before
        label = f"{run.label}, unlearning: forget log-odds from {signed(training.history[0].log_odds)} to "
        label += f"{signed(training.history[-1].log_odds)} in {training.history[-1].step} steps"
        figure = charts.unlearning(training, Frame(before, before.chance, odds, max(1, steps)))
        panels.append(Panel(f"{run.label}: unlearning", to_svg(figure, f"down{i}", label)))
    for k, name in enumerate(dict.fromkeys(a.name for run in runs for a in run.record.ranked if a.trains)):
        panels += _attack_panels(runs, name, f"up{k}", odds)
    return panels


def _attack_panels(runs: Sequence[Labelled], name: str, key: str, odds: Limits) -> list[Panel]:
    """The relearning curves of the attack `name` for each run that has it."""
    found = [(run, a) for run in runs for a in run.record.attacks if a.name == name and a.trains]
    steps = max(p.step for _, attack in found for p in attack.curve)
    panels = []
    for i, (run, attack) in enumerate(found):
        top = max(attack.curve, key=lambda p: p.log_odds)
        label = f"{run.label}, {plain(name)}: log-odds from {signed(attack.start.log_odds)} to at most "
        label += f"{signed(top.log_odds)} at step {top.step}, learning rate {top.learning_rate:g}"
        before = run.record.scores.forget.before
        figure = charts.relearning(attack, Frame(before, attack.chance, odds, max(1, steps)))
        panels.append(Panel(f"{run.label}: {plain(name)}", to_svg(figure, f"{key}-{i}", label)))
    return panels


def influence_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Cumulative D+ and D- per run, of the probability and of the log-odds, one vertical scale for each of these."""
    panels = []
    for number_of, found in enumerate(zip(*(run.record.influences for run in runs), strict=True)):
        top = _top(v for i in found if i for v in (*i.curve_plus, *i.curve_minus))
        for place, (run, influence) in enumerate(zip(runs, found, strict=True)):
            if influence and influence.curve_m:
                of = quantity(influence.of)
                label = f"{run.label}, {of}: at m = {influence.top} erased {number(influence.erased)}, "
                label += f"hidden {number(influence.hidden)}"
                svg = to_svg(charts.cumulative(influence, top), f"sum-{number_of}-{place}", label)
                panels.append(Panel(f"{run.label}: influence on the {of}", svg))
    return panels


def _top(values: Iterable[float]) -> float:
    """The largest of `values`, or 1 where there is none above 0: the end of a scale."""
    return max(values, default=0.0) or 1.0


def map_top(runs: Sequence[Labelled]) -> float:
    """The largest value of any map: the end of the colour scale that all maps share."""
    shown = [influence for run in runs if (influence := _mapped(runs, run))]
    return _top(value for i in shown for grid in (i.map_plus, i.map_minus) for row in grid for value in row)


def map_quantity(runs: Sequence[Labelled]) -> str:
    """What the maps are of."""
    return next((quantity(i.of) for run in runs if (i := _mapped(runs, run))), "")


def _mapped(runs: Sequence[Labelled], run: Labelled) -> Influence | None:
    """The influence of `run` that is mapped: on the log-odds if that is what can be read of any of the runs."""
    odds = any(r.record.telling_influence is not r.record.influence for r in runs)
    return run.record.influence_log_odds if odds else run.record.influence


def map_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """D+ and D- by module and layer, all in one colour scale."""
    panels = []
    top = map_top(runs)
    for i, run in enumerate(runs):
        influence = _mapped(runs, run)
        if influence is None or not influence.layers:
            continue
        maps = (("plus", "erased, D+", influence.map_plus), ("minus", "hidden, D−", influence.map_minus))
        for sign, name, grid in maps:
            value, module, layer = max(
                (v, m, k) for m, row in zip(influence.modules, grid, strict=True) for k, v in enumerate(row)
            )
            label = f"{run.label}, {name}: largest {number(value)} in {plain(module)} of layer {layer}"
            svg = to_svg(charts.heat(grid, influence.modules, top), f"map{sign}{i}", label)
            panels.append(Panel(f"{run.label}: {name}", svg))
    return panels


def probe_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Linear probes per run, one vertical scale for all."""
    found = [(i, run, run.record.probe) for i, run in enumerate(runs) if run.record.probe is not None]
    limits = grammar.padded([v for _, _, probe in found for v in (*probe.before, *probe.after)])
    panels = []
    for i, run, probe in found:
        label = f"{run.label}: best layer {signed(max(probe.before))} before, {signed(max(probe.after))} after"
        panels.append(Panel(f"{run.label}: linear probe", to_svg(charts.probe(probe, limits), f"probe{i}", label)))
    return panels


def lens_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Logit lens per run."""
    panels = []
    for i, run in enumerate(runs):
        lens = run.record.logit_lens
        if lens is not None and lens.before and lens.after:
            ends = f"before {percent(lens.before[-1])}, after {percent(lens.after[-1])}"
            label = f"{run.label}: accuracy at the last layer {ends}"
            panels.append(Panel(f"{run.label}: logit lens", to_svg(charts.lens(lens), f"lens{i}", label)))
    return panels


def group_panels(runs: Sequence[Labelled]) -> list[Panel]:
    """Test groups, what should go above what should stay: log-odds, then accuracy."""
    rows = {run.label: _groups(run.record) for run in runs}
    scores = [s for groups in rows.values() for _, c in groups if c for s in (c.before, c.after)]
    odds = grammar.padded([s.log_odds for s in scores], 0.08)
    panels = []
    for metric, limits, show in (("log_odds", odds, signed), ("accuracy", (-0.02, 1.02), percent)):
        for i, run in enumerate(runs):
            pairs = [_pair(name, change, metric) for name, change in rows[run.label]]
            noun = metric.replace("_", "-")
            moves = [(p.name, p.before, p.after) for p in pairs if p.before is not None and p.after is not None]
            words = "; ".join(f"{name} {show(before)} to {show(after)}" for name, before, after in moves)
            svg = to_svg(charts.dots(pairs, limits, show), f"group{metric}{i}", f"{run.label}, {noun}: {words}")
            panels.append(Panel(f"{run.label}: {noun}", svg))
    return panels


def _groups(record: Record) -> list[tuple[str, Change | None]]:
    """Head rows (no change) and groups in reading order; sets without items are left out."""
    groups = record.scores.groups
    going = [*SHOULD_GO, *(name for name in sorted(groups) if had_to_go(name) and name not in SHOULD_GO)]
    others = [name for name in sorted(groups) if name not in (*going, *SHOULD_STAY)]
    go = [("as trained", record.scores.forget), *((plain(n), groups[n]) for n in going if n in groups)]
    stay = [("retain", record.scores.retain), *((plain(n), groups[n]) for n in SHOULD_STAY if n in groups)]
    if "held_out" not in groups:
        stay.append(("test", record.scores.test))
    rows: list[tuple[str, Change | None]] = []
    for head, part in (("should go", go), ("should stay", stay), ("other", [(plain(n), groups[n]) for n in others])):
        filled = [(name, change) for name, change in part if change.before.n and change.after.n]
        rows += [(head, None), *filled] if filled else []
    return rows


def _pair(name: str, change: Change | None, metric: str) -> Pair:
    """A row of the dot plot; a head where there is no change."""
    if change is None:
        return Pair(name)
    if metric == "log_odds":
        return Pair(name, change.before.log_odds, change.after.log_odds, 0.0)
    return Pair(name, change.before.accuracy, change.after.accuracy, change.before.chance)
