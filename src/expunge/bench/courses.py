"""Courses over methods and seeds, and their table: how every request stands after every other, and under attack."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import get_args

from expunge.bench.grid import Grid, keep, kept, recorded
from expunge.bench.rows import DIGITS, interval, mean, share_interval, with_interval
from expunge.bench.standings import (
    alike,
    at_the_end,
    by_accuracy,
    leads,
    mean_standing,
    moments,
    plain_recovery,
    relearnt,
    shares,
    standing,
    twin_recovery,
    unit,
    worst_earlier,
)
from expunge.continual.course import require_same, run_course
from expunge.continual.record import HELD_OUT, RETAIN, Course, Relearnt, SetScore, Setting
from expunge.progress import Named, Progress, Silent

Courses = Mapping[str, Sequence[Course]]
"""By the method's name in the table."""

LEAST_SEEDS = 3
"""That a difference between two methods stands on: two agree by luck too often."""


@dataclass(frozen=True)
class CourseRow:
    """One set of questions at one moment of one method's courses; means over seeds.

    Args:
        after_request: the request just carried out; "" for the model of the start.
        number: of that request, counted from 1.
        scored_on: a request, "retain" or "held_out".
        ci_low, ci_high: 95 % interval of the accuracy, over seeds and never narrower than over the questions of one
            (`share_interval`).
        control_accuracy, control_log_odds: of a model that never knew the requests so far; None where there is none.
        made_up_log_odds: of the questions' made-up twins; under an attack, where the questions lead them most. None
            where there are none.
        relearnt: how the projections held while the last model was tuned on the first request (see
            `continual.relearning`); "" for a model that was not attacked.
        recovery: R under that attack, its own interval over seeds; None without one.
    """

    benchmark: str
    method: str
    after_request: str
    number: int
    scored_on: str
    accuracy: float
    ci_low: float
    ci_high: float
    chance: float
    log_odds: float
    control_accuracy: float | None
    control_log_odds: float | None
    retain_accuracy: float
    held_out_accuracy: float
    perplexity: float
    seeds: list[int]
    made_up_log_odds: float | None = None
    relearnt: str = ""
    recovery: float | None = None
    recovery_low: float | None = None
    recovery_high: float | None = None


def run_courses(grid: Grid, records: Path, progress: Progress | None = None) -> Courses:
    """The records of all courses, in the order of the seeds; those already in the folder `records` are kept."""
    for cell in grid.cells():
        require_same(cell.recipe)
        target = records / cell.file
        if not recorded(cell, target):
            course = run_course(cell.recipe, Named(progress or Silent(), Path(cell.recipe.output).name))
            keep(cell, target, course.dumps())
    return kept(grid, records, Course.load)


def first_course(courses: Courses) -> Course:
    """One of them: all are of one stream, and stop by one score."""
    return next(iter(courses.values()))[0]


def course_rows(courses: Courses) -> list[CourseRow]:
    """Every set after every request, and every request after relearning, method by method."""
    found = []
    for method, own in courses.items():
        for number in range(len(own[0].after) + 1):
            found += [_row(method, own, number, scored) for scored in own[0].start.sets]
        for back in own[0].relearnt:
            found += [_attacked(method, own, back.setting, scored) for scored in back.sets]
    return found


def dump_course_rows(found: Iterable[CourseRow]) -> tuple[str, str]:
    """The rows as they stand beside a results page: those of models as they were left, of which benchmark, method,
    after_request and scored_on name one, and those after relearning, where `relearnt` does so too."""
    rows = list(found)
    parts = ([asdict(row) for row in rows if bool(row.relearnt) == attacked] for attacked in (False, True))
    left, attacked = (json.dumps(part, indent=1) + "\n" for part in parts)
    return left, attacked


def course_table(courses: Courses) -> str:
    """One line per method: where its courses end, what they cost, and what relearning brings back."""
    told = unit(first_course(courses))
    lines = [
        f"| method | seeds | forgotten: accuracy / {told} | last request / worst earlier one, {told} | retain "
        "| held-out | perplexity | trained numbers | seconds a request | GB at most "
        "| relearnt, merged: same / others | frozen | reapplied | hooks deleted |",
        "|" + "---|" * 14,
    ]
    return "\n".join([*lines, *(_line(method, own) for method, own in courses.items())])


def twin_table(courses: Courses) -> str:
    """One line per method whose questions have made-up twins: their lead over these, R against either control; empty
    without any such method, or where log-odds do not tell."""
    lines = [
        "| method | seeds | lead over made-up subjects at the start | at the end: mean / highest "
        "| after relearning (merged) "
        "| R against ignorance: same / others | R against made-up subjects: same / others |",
        "|" + "---|" * 7,
    ]
    for method, each in courses.items():
        own = [course for course in each if course.start.twins and not by_accuracy(course)]
        pairs = [(course, back) for course in own if (back := relearnt(course, "merged")) and back.twins]
        if not own:
            continue
        last = [leads(course, course.after[-1]) for course in own]
        cells = [
            f"{fmean(fmean(leads(course, course.start)) for course in own):+.2f}",
            f"{_spread([fmean(ends) for ends in last], '+')} / {fmean(map(max, last)):+.2f}",
            _spread([fmean(leads(course, back)) for course, back in pairs], "+"),
            *(" / ".join(map(_spread, shares(own, "merged", by))) for by in (plain_recovery, twin_recovery)),
        ]
        lines.append(f"| {' | '.join([method, str(len(own)), *cells])} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def paired_table(courses: Courses, to: str) -> str:
    """One line per method that shares `LEAST_SEEDS` with the method `to`: where its courses end, minus where those of
    `to` do on the same seeds, means and 95 % intervals (Student's t). Empty without any such method."""
    lines = [
        f"| minus {to} | seeds | retain | held-out | relearnt, merged: same | others |",
        "|" + "---|" * 6,
    ]
    base = {course.seed: course for course in courses.get(to, ())}
    for method, each in courses.items():
        own = [course for course in each if course.seed in base]
        if method == to or len(own) < LEAST_SEEDS:
            continue
        pairs = [(course, base[course.seed]) for course in own]
        measure = alike([course for pair in pairs for course in pair])
        mine, its = (shares(side, "merged", measure) for side in zip(*pairs, strict=True))
        cells = [
            *(_spread([_ends(a, name) - _ends(b, name) for a, b in pairs], "+") for name in (RETAIN, HELD_OUT)),
            *(_spread(_differences(a, b, len(pairs)), "+") for a, b in zip(mine, its, strict=True)),
        ]
        lines.append(f"| {' | '.join([method, str(len(own)), *cells])} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _differences(one: Sequence[float], other: Sequence[float], n: int) -> list[float]:
    """Seed by seed; none unless all `n` courses of both were attacked so."""
    return [a - b for a, b in zip(one, other, strict=True)] if len(one) == len(other) == n else []


def _ends(course: Course, name: str) -> float:
    return course.after[-1].sets[name].accuracy


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and interval over seeds; empty without values, or where one of them means nothing."""
    if not values or any(map(math.isnan, values)):
        return ""
    return with_interval(fmean(values), *interval(values), sign)


def _accuracy(each: Iterable[Sequence[SetScore]]) -> str:
    """Mean accuracy, and its interval, of some sets of questions in every course."""
    sets = list(each)
    shares = [fmean(one.accuracy for one in own) for own in sets]
    return with_interval(fmean(shares), *share_interval(shares, sum(one.n for one in sets[0])))


def request_table(courses: Courses) -> str:
    """One line per method: accuracy of every request, and of what stays, in the last model, beside start and chance."""
    names = [*(moment.request for moment in first_course(courses).after), RETAIN, HELD_OUT]
    lines = [
        f"| method | {' | '.join(name.replace('_', '-') for name in names)} |",
        "|" + "---|" * (1 + len(names)),
    ]
    for method, own in courses.items():
        cells = [_from_to(_row(method, own, 0, name), _row(method, own, len(own[0].after), name)) for name in names]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def _from_to(start: CourseRow, end: CourseRow) -> str:
    now = with_interval(end.accuracy, end.ci_low, end.ci_high)
    return f"{start.accuracy:.2f} to {now}, chance {end.chance:.2f}"


SHORT = ("method", "forgotten", "worst earlier", "retain", "held-out", "relearnt: same", "others")
"""Columns of `short_table`."""


def short_table(courses: Courses) -> list[tuple[str, ...]]:
    """The narrow form: how all requests and the worst earlier one stand at the end, what stays, R when merged."""
    return [
        (
            method,
            f"{fmean(map(mean_standing, own)):+.2f}",
            f"{fmean(map(worst_earlier, own)):+.2f}",
            *(f"{fmean(course.after[-1].sets[name].accuracy for course in own):.2f}" for name in (RETAIN, HELD_OUT)),
            *(f"{fmean(found):.2f}" if found else "" for found in shares(own, "merged")),
        )
        for method, own in courses.items()
    ]


def _attacked(method: str, own: Sequence[Course], setting: str, scored: str) -> CourseRow:
    """A request in the last model, after relearning on the first one."""
    pairs = [(course, back) for course in own if (back := relearnt(course, setting))]
    measure = alike(own)
    found = [measure(course, back, [scored]) for course, back in pairs]
    low, high = interval(found)
    row = _row(method, [course for course, _ in pairs], len(own[0].after), scored, [back for _, back in pairs])
    bounds = (None, None) if math.isnan(low) else (round(low, DIGITS), round(high, DIGITS))
    return replace(row, relearnt=setting, recovery=mean(found), recovery_low=bounds[0], recovery_high=bounds[1])


def _row(
    method: str, own: Sequence[Course], number: int, scored: str, attacked: Sequence[Relearnt] | None = None
) -> CourseRow:
    """One set after request `number` or, where given, as it was `attacked` then."""
    now = [moments(course)[number] for course in own]
    stood = attacked or now
    sets = [one.sets[scored] for one in stood]
    made_up = [one.twins[scored].made_up for one in stood if scored in one.twins]
    gold = [course.gold[number - 1].sets[scored] for course in own if course.gold and number]
    low, high = share_interval([one.accuracy for one in sets], sets[0].n)
    return CourseRow(
        benchmark=own[0].stream,
        method=method,
        after_request=now[0].request,
        number=number,
        scored_on=scored,
        accuracy=mean(one.accuracy for one in sets),
        ci_low=round(low, DIGITS),
        ci_high=round(high, DIGITS),
        chance=mean(one.chance for one in sets),
        log_odds=mean(one.log_odds for one in sets),
        control_accuracy=mean(one.accuracy for one in gold) if gold else None,
        control_log_odds=mean(one.log_odds for one in gold) if gold else None,
        retain_accuracy=mean(moment.sets[RETAIN].accuracy for moment in now),
        held_out_accuracy=mean(moment.sets[HELD_OUT].accuracy for moment in now),
        perplexity=mean(moment.perplexity for moment in now),
        seeds=[course.seed for course in own],
        made_up_log_odds=mean(made_up) if made_up else None,
    )


def _line(method: str, own: Sequence[Course]) -> str:
    def over(measure: Callable[[Course], float], digits: str) -> str:
        return f"{fmean(map(measure, own)):{digits}}"

    def back(setting: str) -> str:
        same, others = shares(own, setting)
        return f"{_spread(same)} / {_spread(others)}" if same else ""

    cells = [
        method,
        str(len(own)),
        f"{_accuracy(map(at_the_end, own))} / {over(mean_standing, '+.2f')}",
        f"{over(lambda c: standing(c, at_the_end(c)[-1]), '+.2f')} / {over(worst_earlier, '+.2f')}",
        *(_accuracy([c.after[-1].sets[name]] for c in own) for name in (RETAIN, HELD_OUT)),
        over(lambda c: c.after[-1].perplexity, ".1f"),
        f"{own[0].after[0].trained:,}",
        over(lambda c: fmean(moment.seconds for moment in c.after), ".1f"),
        over(lambda c: c.after[-1].peak_bytes / 1e9, ".1f"),
        *map(back, get_args(Setting)),
    ]
    return f"| {' | '.join(cells)} |"
