"""How far above ignorance the questions of a course stand.

    standing = log-odds of the answer against its options, nats per token
             = accuracy - chance                               where accuracy is what the course stops by
    R        = sum_s (attacked_s - control_s) / sum_s (before_s - control_s)        s: the sets of questions asked for

The control is the gold model of the whole stream where there is one, else ignorance, standing 0. Where options differ
much in length, as in ScienceQA, a few items of tens of nats make the mean log-odds say nothing; accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from expunge.continual.record import Course, Moment, Relearnt, SetScore


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
    """R of the sets `names` under an attack."""

    def total(sets: Iterator[SetScore]) -> float:
        return sum(standing(course, score) for score in sets)

    control = total(course.gold[-1].sets[name] for name in names) if course.gold else 0.0
    before = total(course.start.sets[name] for name in names)
    return (total(back.sets[name] for name in names) - control) / (before - control)


def shares(own: Sequence[Course], setting: str) -> tuple[list[float], list[float]]:
    """R of the request tuned on, and R of all others, course by course; empty where the setting was not tried."""
    pairs = [(course, back) for course in own if (back := relearnt(course, setting))]
    first, *others = [moment.request for moment in own[0].after]
    same = [recovery(course, back, [first]) for course, back in pairs]
    return same, [recovery(course, back, others) for course, back in pairs] if others else []


def relearnt(course: Course, setting: str) -> Relearnt | None:
    """The attack of the course in this setting."""
    return next((found for found in course.relearnt if found.setting == setting), None)


def mean_standing(course: Course) -> float:
    """Over all requests, at the end."""
    return fmean(standing(course, score) for score in at_the_end(course))
