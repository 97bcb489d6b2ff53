"""How far above ignorance the questions of a course stand.

    standing = log-odds of the answer against its options, nats per token
             = accuracy - chance                               where accuracy is what the course stops by
    R        = sum_s (attacked_s - control'_s) / sum_s (before_s - control_s)       s: the sets of questions asked for

The control is the gold model of the whole stream where there is one, control' the same attacked alike and at the same
moment (but where accuracy tells: as it is); else ignorance, standing 0. Of the request that is tuned on, all of these
are of those questions alone that are not (`Rest`). Where the questions have made-up twins (`data.twins`) these are a
second control, and R is the larger one of the two (`audit.control`):

    R        = sum_s lead(attacked_s) / sum_s lead(before_s)        lead = log-odds of the items - those of their twins

Where options differ much in length, as in ScienceQA, a few items of tens of nats make the mean log-odds say nothing;
accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from expunge.audit.control import LEAST_KNOWLEDGE, MOST_ITEMS
from expunge.continual.record import Course, Moment, Relearnt, SetScore

_S = TypeVar("_S")


def by_accuracy(course: Course) -> bool:
    """Whether the course stops by accuracy alone, so that it is accuracy that tells what it forgot."""
    asked = course.recipe.get("unlearn", {})
    return asked.get("stop_accuracy") is not None and asked.get("stop_log_odds", 0.0) is None


def unit(course: Course) -> str:
    """What a standing is."""
    return "accuracy above chance" if by_accuracy(course) else "log-odds"


def standing(course: Course, score: SetScore) -> float:
    """Of one set of questions; 0 is ignorance."""
    return score.accuracy - score.chance if by_accuracy(course) else score.log_odds


def moments(course: Course) -> tuple[Moment, ...]:
    """The start, and after every request."""
    return (course.start, *course.after)


def at_the_end(course: Course) -> list[SetScore]:
    """Every request in the last model, in order."""
    return [course.after[-1].sets[moment.request] for moment in course.after]


def worst_earlier(course: Course) -> float:
    """The highest standing at the end among the requests before the last; NaN where there is none."""
    return max((standing(course, score) for score in at_the_end(course)[:-1]), default=math.nan)


def recovery(course: Course, back: Relearnt, names: Sequence[str]) -> float:
    """R of the sets `names` under an attack, the larger one where there are two controls."""
    plain, ahead = plain_recovery(course, back, names), twin_recovery(course, back, names)
    return plain if math.isnan(ahead) else max(plain, ahead)


def twin_recovery(course: Course, back: Relearnt, names: Sequence[str]) -> float:
    """R against made-up subjects alone; NaN where accuracy tells, too few questions have a twin, or the start hardly
    leads them."""
    knew = _of_asked(course.start.twins, back, back.rest.twins if back.rest else None)
    own = [name for name in names if name in back.twins and name in knew]
    have, asked = sum(knew[name].n for name in own), sum(back.sets[name].n for name in names)
    before = sum(knew[name].lead for name in own)
    if by_accuracy(course) or have < MOST_ITEMS * asked or before < LEAST_KNOWLEDGE * len(own):
        return math.nan
    return sum(back.twins[name].lead for name in own) / before


def plain_recovery(course: Course, back: Relearnt, names: Sequence[str]) -> float:
    """R against the gold model or ignorance."""

    def total(moment: Moment, rest: SetScore | None) -> float:
        own = _of_asked(moment.sets, back, rest)
        return sum(standing(course, own[name]) for name in names)

    rest = back.rest
    knew = total(course.start, rest.start if rest else None)
    never = total(course.gold[-1], rest.gold if rest else None) if course.gold else 0.0
    alike = never if by_accuracy(course) or not back.control else sum(back.control[name] for name in names)
    return (sum(standing(course, back.sets[name]) for name in names) - alike) / (knew - never)


def _of_asked(sets: Mapping[str, _S], back: Relearnt, rest: _S | None) -> dict[str, _S]:
    """The sets at a moment, that of the request which is tuned on by its questions that are not."""
    return {**sets} if rest is None else {**sets, back.request: rest}


Measure = Callable[[Course, Relearnt, Sequence[str]], float]


def alike(own: Sequence[Course]) -> Measure:
    """The larger R, or that against ignorance where some are from before made-up subjects were asked about."""
    return recovery if all(course.start.twins for course in own) else plain_recovery


def shares(own: Sequence[Course], setting: str, measure: Measure | None = None) -> tuple[list[float], list[float]]:
    """R of the request tuned on and of all others, course by course; empty where the setting was not tried.

    By `measure`, or against what all of the courses were measured against.
    """
    measure = measure or alike(own)
    pairs = [(course, back) for course in own if (back := relearnt(course, setting))]
    first, *others = [moment.request for moment in own[0].after]
    same = [measure(course, back, [first]) for course, back in pairs]
    return same, [measure(course, back, others) for course, back in pairs] if others else []


def relearnt(course: Course, setting: str) -> Relearnt | None:
    """The attack of the course in this setting."""
    return next((found for found in course.relearnt if found.setting == setting), None)


def leads(course: Course, moment: Moment | Relearnt) -> list[float]:
    """How far each request that has made-up twins stands above them at a moment, in order; nats."""
    return [moment.twins[after.request].lead for after in course.after if after.request in moment.twins]


def mean_standing(course: Course) -> float:
    """Over all requests, at the end."""
    return fmean(standing(course, score) for score in at_the_end(course))
