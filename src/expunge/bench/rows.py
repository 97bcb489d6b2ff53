"""Rows of a results table, out of records alone: one per method and attack, means over seeds with 95 % intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from expunge.audit.intervals import wilson
from expunge.audit.verdict import Rule
from expunge.report.record import Attack, Record, Score

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % points of Student's t with n - 1 degrees of freedom."""

REQUIRED = Rule().required

DIGITS = 4


@dataclass(frozen=True)
class Row:
    """One method under one attack; all but the lists are means over the seeds.

    forget_after_spread: mean size of the items' log-odds, without their signs: 0 if every item is unknown, large where
    some are avoided and others still known, though the mean be 0.
    attacked_accuracy_low, attacked_accuracy_high: its 95 % interval (`share_interval`).
    control_spread: twice the standard deviation over seeds of what a gold model says under the attack, in units of R:
    how far apart models are that never knew. None for another control, or a single seed.
    recovery: R of the log-odds (0 nothing came back, 1 everything), its 95 % interval over seeds (Student's t).
    against: mean difference of recovery to the first method of the table under the same attack and seeds, with its own
    interval: paired, because a seed is the same split and model for all.
    """

    benchmark: str
    model: str
    method: str
    attack: str
    seeds: list[int]
    steps: list[int]
    forget_before: float
    forget_before_log_odds: float
    forget_after: float
    forget_after_log_odds: float
    forget_after_spread: float
    retain_after: float
    held_out_after: float
    attacked_accuracy: float
    attacked_accuracy_low: float
    attacked_accuracy_high: float
    attacked_log_odds: float
    control_accuracy: float
    control_log_odds: float
    control_spread: float | None
    chance: float
    recovery: float
    ci_low: float
    ci_high: float
    recovery_by_seed: list[float]
    against: float
    against_low: float
    against_high: float
    rho: float | None
    seconds: float
    peak_bytes: float
    verdicts: list[str]
    control: str

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Row:
        """The row that `to_json` gave."""
        missing = {field.name for field in fields(cls) if field.type == "float" and tree[field.name] is None}
        return cls(**{**tree, **dict.fromkeys(missing, math.nan)})

    def to_json(self) -> dict[str, object]:
        """Plain JSON types; what could not be computed from so few seeds is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def short(self) -> tuple[str, ...]:
        """The cells of a narrow table: method, attack, after, attacked, recovery, retain, held-out."""
        return (
            self.method,
            self.attack,
            f"{self.forget_after_log_odds:+.2f}",
            f"{self.attacked_log_odds:+.2f}",
            with_interval(self.recovery, self.ci_low, self.ci_high),
            share(self.retain_after),
            share(self.held_out_after),
        )


def rows(records: Mapping[str, Sequence[Record]]) -> list[Row]:
    """The rows of records by method name; the first method is what the others are compared with.

    The attacks that a verdict requires come first. Records of one method and seed may come from several grids, with
    other attacks each; an attack that two of them made alike (see `attack_name`) counts once, of several draws of the
    facts to tune on in one record the mean counts, and one on a scale of its own, which has no recovery, is left out.
    """
    found, first = [], next(iter(records.values()))
    for name, own in records.items():
        told = [a for record in own for a in record.attacks if a.known or a.counts]
        required = {attack_name(a) for a in told if a.name in REQUIRED}
        for attack in sorted(dict.fromkeys(map(attack_name, told)), key=lambda each: each not in required):
            found.append(_row(name, attack, own, first))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds, by Student's t; NaN for a single one."""
    if len(values) < 2:
        return math.nan, math.nan
    half = STUDENT.get(len(values), 2.262) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def share_interval(shares: Sequence[float], n: int) -> tuple[float, float]:
    """95 % interval of an accuracy, inside [0, 1]: that over seeds (`interval`), but never narrower than what the `n`
    questions of one seed allow (Wilson), which is all there is of a single one."""
    low, high = wilson(fmean(shares), n)
    if len(shares) < 2:
        return low, high
    over = interval(shares)
    return max(0.0, min(low, over[0])), min(1.0, max(high, over[1]))


def dump_json(found: Iterable[Row]) -> str:
    """The rows as they stand beside every results page."""
    return json.dumps([row.to_json() for row in found], indent=1) + "\n"


def markdown(found: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| method | attack | seeds | steps | after: accuracy / log-odds (spread) | attacked: accuracy / log-odds "
        "| control (spread) | recovery | against the first | retain | held-out | seconds / GB | verdicts |",
        "|" + "---|" * 13,
    ]
    return "\n".join([*lines, *(_line(row, compared=row.method != found[0].method) for row in found)])


def recovery_table(found: Sequence[Row]) -> str:
    """Recovery alone, a line for each method and a column for each attack: for tables of many attacks.

    A method met by some attacks on fewer seeds than by others has both numbers of seeds.
    """
    attacks = list(dict.fromkeys(row.attack for row in found))
    columns = ["method", "seeds", "after: log-odds", *attacks, "retain", "held-out", "seconds"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for method in dict.fromkeys(row.method for row in found):
        own = {row.attack: row for row in found if row.method == method}
        cells = [with_interval(r.recovery, r.ci_low, r.ci_high) if (r := own.get(name)) else "" for name in attacks]
        some, seeds = next(iter(own.values())), [len(row.seeds) for row in own.values()]
        told = [method, " to ".join(map(str, dict.fromkeys((min(seeds), max(seeds)))))]
        told.append(f"{some.forget_after_log_odds:+.2f}")
        kept = [share(some.retain_after), share(some.held_out_after), f"{some.seconds:.0f}"]
        lines.append(f"| {' | '.join([*told, *cells, *kept])} |")
    return "\n".join(lines)


def attacked(records: Sequence[Record], name: str) -> list[tuple[Record, list[Attack]]]:
    """The first record of each seed that was attacked so (`attack_name`), with the attacks: one, or several that drew
    other facts (`split_seed`)."""
    found: dict[int, tuple[Record, list[Attack]]] = {}
    for record in records:
        if draws := [attack for attack in record.attacks if attack_name(attack) == name]:
            found.setdefault(_seed(record), (record, draws))
    return list(found.values())


def attack_name(attack: Attack) -> str:
    """As results pages call it: harmful_0.3, harmful_0.3_wrong (of facts answered wrongly), related, benign_lora8,
    benign_FILE (of instructions from a file of that name)."""
    fraction = f"_{attack.settings['fraction']}" if "fraction" in attack.settings else ""
    rank = attack.settings.get("lora_rank") or 0
    kind = attack.name.partition("@")[0].removeprefix("relearn-")
    wrong = "_wrong" if attack.settings.get("pool") == "wrong" else ""
    file = attack.settings.get("file")
    return kind + fraction + wrong + (f"_{Path(str(file)).stem}" if file else "") + (f"_lora{rank}" if rank else "")


def _row(name: str, attack: str, own: Sequence[Record], first: Sequence[Record]) -> Row:
    pairs = attacked(own, attack)
    records = [record for record, _ in pairs]

    def by_seed(value: Callable[[Attack], float]) -> list[float]:
        return [fmean(map(value, draws)) for _, draws in pairs]

    recovery = by_seed(_recovery)
    low, high = interval(recovery)
    other = {_seed(record): fmean(map(_recovery, draws)) for record, draws in attacked(first, attack)}
    differences = [
        r - other[_seed(record)] for r, record in zip(recovery, records, strict=True) if _seed(record) in other
    ]
    accuracy, asked = by_seed(lambda a: a.accuracy), min(a.start.n for _, draws in pairs for a in draws)
    apart, level = interval(differences), share_interval(accuracy, asked)
    model = records[0].model
    before, after = [r.scores.forget.before for r in records], [r.scores.forget.after for r in records]
    known = [a.rho for _, draws in pairs for a in draws if a.rho is not None]
    return Row(
        benchmark=records[0].recipe.benchmark,
        model=f"{model.name}, {model.parameters:,} parameters, {model.source}",
        method=name,
        attack=attack,
        seeds=[_seed(record) for record in records],
        steps=[record.cost.steps for record in records],
        forget_before=mean(s.accuracy for s in before),
        forget_before_log_odds=mean(s.log_odds for s in before),
        forget_after=mean(s.accuracy for s in after),
        forget_after_log_odds=mean(s.log_odds for s in after),
        forget_after_spread=mean(map(_spread, records)),
        retain_after=mean(map(_accuracy, (r.scores.retain.after for r in records))),
        held_out_after=mean(map(_accuracy, (r.scores.test.after for r in records))),
        attacked_accuracy=mean(accuracy),
        attacked_accuracy_low=round(level[0], DIGITS),
        attacked_accuracy_high=round(level[1], DIGITS),
        attacked_log_odds=mean(by_seed(lambda a: a.log_odds)),
        control_accuracy=mean(by_seed(lambda a: a.control.accuracy)),
        control_log_odds=mean(by_seed(lambda a: a.control.log_odds)),
        control_spread=_control_spread(pairs),
        chance=mean(by_seed(lambda a: a.chance)),
        recovery=mean(recovery),
        ci_low=round(low, DIGITS),
        ci_high=round(high, DIGITS),
        recovery_by_seed=[round(value, DIGITS) for value in recovery],
        against=mean(differences),
        against_low=round(apart[0], DIGITS),
        against_high=round(apart[1], DIGITS),
        rho=mean(known) if known else None,
        seconds=mean(r.cost.stages.get("unlearning", math.nan) for r in records),
        peak_bytes=mean(float(r.cost.peak_bytes) for r in records),
        verdicts=[record.verdict for record in records],
        control=records[0].control.kind,
    )


def _recovery(attack: Attack) -> float:
    return attack.recovery


def _control_spread(pairs: Sequence[tuple[Record, Sequence[Attack]]]) -> float | None:
    known = [(r, own) for r, draws in pairs if (own := [a.control for a in draws if a.control.curve])]
    if len(known) < 2:
        return None
    odds = [fmean(control.log_odds for control in own) for _, own in known]
    scale = fmean(r.scores.forget.before.log_odds - own[0].curve[0].log_odds for r, own in known)
    return round(2 * stdev(odds) / scale, DIGITS)


def _spread(record: Record) -> float:
    """Mean size of the forget items' log-odds after unlearning."""
    odds = [item.after.log_odds for item in record.items if item.split == "forget"]
    known = [abs(value) for value in odds if value is not None]
    return fmean(known) if known else math.nan


def _seed(record: Record) -> int:
    seed = record.seeds["data"]
    assert isinstance(seed, int)
    return seed


def mean(values: Iterable[float]) -> float:
    """The mean, to four digits; NaN of nothing."""
    known = list(values)
    return round(fmean(known), DIGITS) if known else math.nan


def _line(row: Row, *, compared: bool) -> str:
    difference = with_interval(row.against, row.against_low, row.against_high, "+") if compared else ""
    apart = "" if row.control_spread is None else f" ({row.control_spread:.2f})"
    return (
        f"| {row.method} | {row.attack} | {len(row.seeds)} | {', '.join(map(str, row.steps))} "
        f"| {row.forget_after:.2f} / {row.forget_after_log_odds:+.2f} ({row.forget_after_spread:.1f}) "
        f"| {with_interval(row.attacked_accuracy, row.attacked_accuracy_low, row.attacked_accuracy_high)} "
        f"/ {row.attacked_log_odds:+.2f} "
        f"| {row.control_accuracy:.2f} / {row.control_log_odds:+.2f}{apart} "
        f"| {with_interval(row.recovery, row.ci_low, row.ci_high)} | {difference} "
        f"| {share(row.retain_after)} | {share(row.held_out_after)} | {row.seconds:.0f} / {row.peak_bytes / 1e9:.1f} "
        f"| {', '.join(sorted(set(row.verdicts)))} |"
    )


def _accuracy(score: Score) -> float:
    """NaN where there was nothing to score."""
    return score.accuracy if score.n else math.nan


def share(value: float) -> str:
    """An accuracy; empty where there is none."""
    return "" if math.isnan(value) else f"{value:.2f}"


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """`0.93 [0.67, 1.13]`; the value alone where a single seed gives no interval."""
    return f"{value:{sign}.2f}" + ("" if math.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]")
