"""Recovery: how much an attack brought back, measured against a control that never knew.

    R(t) = ( s(unlearned, t) - s(control, t) ) / ( s(original, 0) - s(control, 0) )          0 = nothing, 1 = everything

s is the mean log-odds of the held-out items, t a moment (learning rate, seed, step) of the attack. The control is

    gold model         a model retrained without the forget set and attacked in the same way
    ignorance          log-odds 0 and chance accuracy at every moment
    made-up subjects   s(control, t): the items' twins (`expunge.data.twins`) in the unlearned model at t,
                       s(control, 0): the same twins in the original

The first where there is one. Else R is the larger one of the other two, bound by bound: whoever hides facts by making
their answers unlikely for every subject is found out by an item's lead over its twin, and whoever makes the answers
likely for every subject is measured against ignorance as before. So twins never make a recovery smaller. The score of
an attack is R where the lead over the control is largest over learning rates and time, averaged over seeds: more of an
attack never brings back less. Its interval resamples items, each with its values in all three models, and seeds; the
choice of the moment is part of the attack and is not resampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from expunge.attacks.base import AttackResult, CurvePoint
from expunge.audit.intervals import Indices, bootstrap, wilson_low
from expunge.errors import InputError
from expunge.models.scores import ItemScore, Scores, summarise

GOLD_MODEL = "gold model"
IGNORANCE = "log-odds 0 and chance accuracy"
MADE_UP = "made-up subjects"
MOST_ITEMS = 0.75
"""Twins are a control where so large a share of the held-out items has one."""

LEAST_ITEMS = 8
"""Fewer facts tell nothing by themselves where nothing is attacked: their interval is too narrow to be true."""

LEAST_KNOWLEDGE = 0.1
"""Nats of mean log-odds by which the original must exceed the control; below, there was nothing to bring back."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """What came back, as a share of what there was.

    Args:
        value: R of the log-odds; 0 where the original knew no more than the control.
        low: lower bound of the interval, NaN where `value` means nothing.
        high: upper bound.
        accuracy: R of the accuracy, where its lead over the control's is largest.
        items: number of items.
        seeds: number of the attack's seeds.
        control: `GOLD_MODEL`, `MADE_UP` or `IGNORANCE`.
        control_log_odds: s(control, t) at the moment of R.
        control_accuracy: of the control at the attack's best accuracy.
        curve: R at each point of the attack's curve.
        note: what a reader has to know of the twins, in words.
        twinned: whether the twins were a control too.
    """

    value: float
    low: float
    high: float
    accuracy: float
    items: int
    seeds: int
    control: str
    control_log_odds: float
    control_accuracy: float
    curve: tuple[float, ...] = ()
    note: str = ""
    twinned: bool = False

    @property
    def known(self) -> bool:
        """Whether the original knew more than the control, so that R means something."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def recovery(
    attacked: AttackResult,
    original: Sequence[ItemScore],
    control: AttackResult | None = None,
    *,
    twins: Mapping[str, ItemScore] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Recovery:
    """R of an attack on the unlearned model.

    Args:
        attacked: the attack's result.
        original: scores of the model before unlearning on at least the held-out items.
        control: result of the same attack, run with `like=attacked`, on a model that never knew.
        twins: scores of the twins by the model before unlearning, by the id of their item; of use where the attack
            scored them too and there is no `control`.
        level: coverage of the interval.
        seed: of the resampling.

    Raises:
        InputError: the original lacks held-out items, or the control or the twins are others.
    """
    plain = _recovery(attacked, original, control, level, seed)
    if control is not None or not twins or not attacked.twin_ids or not plain.known:
        return plain
    if not _enough(attacked):
        few = (
            f"Only {len(attacked.twin_ids)} of the {len(attacked.held_out_ids)} items of {attacked.name} have a "
            "made-up twin: ignorance alone is its control."
        )
        return replace(plain, note=few)
    larger = _larger(plain, lead(attacked, original, twins, level=level, seed=seed))
    return replace(larger, note=_guessable(summarise(list(twins.values()))))


def came_back(attacked: AttackResult, known: Mapping[str, float], twins: Mapping[str, float]) -> float | None:
    """The value of `recovery` without a gold model, from log-odds alone; None where the original knew nothing.

    Args:
        attacked: the attack's result.
        known: log-odds of the held-out items, at least, in the model before unlearning, by their ids.
        twins: likewise of their twins, by the id of the item; no control where one that the attack scored is missing.
    """
    plain, _ = _over_control(attacked, known, None)
    if not plain.scale >= LEAST_KNOWLEDGE:
        return None
    if not attacked.twin_ids or not _enough(attacked) or not attacked.twin_ids.keys() <= twins.keys():
        return plain.value
    ahead, _ = _over_twins(attacked, known, twins)
    return max(plain.value, ahead.value) if ahead.scale >= LEAST_KNOWLEDGE else plain.value


def _enough(attacked: AttackResult) -> bool:
    """Whether the twins that the attack scored are a control for its items."""
    return len(attacked.twin_ids) >= MOST_ITEMS * len(attacked.held_out_ids)


def _recovery(
    attacked: AttackResult, original: Sequence[ItemScore], control: AttackResult | None, level: float, seed: int
) -> Recovery:
    """R against a gold model or ignorance."""
    if control is not None:
        _require_alike(attacked, control)
    knew = _pick(original, attacked.held_out_ids)
    tables, shares = _over_control(attacked, _by_id(knew), control)

    def floor(moment: CurvePoint) -> float:
        return attacked.start.chance if control is None else _same_moment(control, moment).accuracy

    began = attacked.start.chance if control is None else control.start.accuracy
    ahead = max(point.accuracy - floor(point) for point in attacked.curve)
    return Recovery(
        *tables.share(level, seed),
        accuracy=_ratio(ahead, summarise(knew).accuracy - began, 0.0),
        items=len(knew),
        seeds=len(tables.now),
        control=IGNORANCE if control is None else GOLD_MODEL,
        control_log_odds=float(tables.never.mean()),
        control_accuracy=floor(attacked.best_accuracy),
        curve=shares,
    )


def _require_alike(attacked: AttackResult, control: AttackResult) -> None:
    """InputError unless both are one attack on one split, as they are not where the second was interrupted."""
    if control.held_out_ids != attacked.held_out_ids or control.trained_ids != attacked.trained_ids:
        raise InputError(
            "The control was scored on other items.", attacked.name, "Attack it again with like=<this result>."
        )
    if control.settings != attacked.settings:
        raise InputError(
            "The control was attacked with other settings.", attacked.name, "Run `expunge attack` again to the end."
        )


def lead(
    attacked: AttackResult,
    original: Sequence[ItemScore],
    twins: Mapping[str, ItemScore],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Recovery:
    """R against the twins alone, whatever they are worth, without an accuracy; arguments as those of `recovery`."""
    ids = list(attacked.twin_ids)
    if missing := [i for i in ids if i not in twins or twins[i].id != attacked.twin_ids[i]]:
        raise InputError("The attack scored other twins.", missing[0], "Run `expunge attack` again.")
    guessed = {item: twin.log_odds for item, twin in twins.items()}
    tables, shares = _over_twins(attacked, _by_id(_pick(original, ids)), guessed)
    return Recovery(
        *tables.share(level, seed),
        accuracy=math.nan,
        items=len(ids),
        seeds=len(tables.now),
        control=MADE_UP,
        control_log_odds=float(tables.never.mean()),
        control_accuracy=attacked.start.chance,
        curve=shares,
    )


def _larger(plain: Recovery, ahead: Recovery) -> Recovery:
    """What came back by the control that says more, bound by bound; accuracy is always over chance."""
    if not ahead.known:
        return plain
    return replace(
        ahead if ahead.value > plain.value else plain,
        low=max(plain.low, ahead.low),
        high=max(plain.high, ahead.high),
        accuracy=plain.accuracy,
        twinned=True,
        curve=tuple(map(max, plain.curve, ahead.curve)),
    )


def _guessable(told: Scores) -> str:
    """What to say of twins that the original answered; empty where it may have been luck."""
    if (bound := wilson_low(told.accuracy, told.n)) <= told.chance:
        return ""
    return (
        f"Before unlearning the model preferred the right answer for {told.accuracy:.0%} of the made-up subjects too "
        f"(at least {bound:.0%}, chance {told.chance:.0%}): part of what it seemed to know can be guessed without the "
        "subject, and counts as recovered."
    )


def residual(
    unlearned: Sequence[ItemScore],
    original: Sequence[ItemScore],
    control: Sequence[ItemScore] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Recovery:
    """R before any attack: what the unlearned model simply still says, on all of its items."""
    ids = [item.id for item in unlearned]
    knew, never = _pick(original, ids), () if control is None else _pick(control, ids)
    start = _log_odds(never) if never else np.zeros(len(ids))
    tables = Tables(now=_log_odds(unlearned)[None], never=start[None], known=_log_odds(knew), start=start)
    after = summarise(unlearned)
    floor = summarise(never).accuracy if never else after.chance
    return Recovery(
        *tables.share(level, seed),
        accuracy=_ratio(after.accuracy - floor, summarise(knew).accuracy - floor, 0.0),
        items=len(ids),
        seeds=1,
        control=GOLD_MODEL if never else IGNORANCE,
        control_log_odds=float(start.mean()),
        control_accuracy=floor,
    )


@dataclass(frozen=True)
class Tables:
    """Log-odds by item of the three models that R compares.

    Args:
        now: of the unlearned model where it leads the control most, [seeds, items].
        never: of the control at the same moments, [seeds, items].
        known: of the original before any attack, [items].
        start: of the control before any attack, [items].
    """

    now: Values
    never: Values
    known: Values
    start: Values

    @property
    def scale(self) -> float:
        """What there was to bring back, in nats."""
        return float(self.known.mean() - self.start.mean())

    @property
    def value(self) -> float:
        """R; 0 where there was nothing to bring back."""
        return _ratio(float(self.now.mean() - self.never.mean()), self.scale, LEAST_KNOWLEDGE)

    def share(self, level: float, seed: int) -> tuple[float, float, float]:
        """R and its interval; (0, NaN, NaN) where there was nothing to bring back."""
        if not self.scale >= LEAST_KNOWLEDGE:
            return 0.0, math.nan, math.nan

        def statistic(seeds: Indices, items: Indices) -> float:
            cells = np.ix_(seeds, items)
            scale = self.known[items].mean() - self.start[items].mean()
            return _ratio(self.now[cells].mean() - self.never[cells].mean(), scale, LEAST_KNOWLEDGE, math.nan)

        return self.value, *bootstrap(statistic, self.now.shape, level=level, seed=seed)


def _over_control(
    attacked: AttackResult, known: Mapping[str, float], control: AttackResult | None
) -> tuple[Tables, tuple[float, ...]]:
    """The tables against a gold model or ignorance, and R at every moment."""
    curve, items = attacked.curve, len(attacked.held_out_ids)
    return _at_largest_lead(
        curve,
        now=np.array([point.item_log_odds for point in curve]),
        never=np.array([_never(control, point, items) for point in curve]),
        known=np.array([known[i] for i in attacked.held_out_ids]),
        start=_never(control, curve[0], items),
    )


def _over_twins(
    attacked: AttackResult, known: Mapping[str, float], twins: Mapping[str, float]
) -> tuple[Tables, tuple[float, ...]]:
    """The tables of the items that have a twin against these, and R at every moment."""
    ids = list(attacked.twin_ids)
    columns = [attacked.held_out_ids.index(i) for i in ids]
    return _at_largest_lead(
        attacked.curve,
        now=np.array([point.item_log_odds for point in attacked.curve])[:, columns],
        never=np.array([point.twin_log_odds for point in attacked.curve]),
        known=np.array([known[i] for i in ids]),
        start=np.array([twins[i] for i in ids]),
    )


def _at_largest_lead(
    curve: Sequence[CurvePoint], *, now: Values, never: Values, known: Values, start: Values
) -> tuple[Tables, tuple[float, ...]]:
    """The tables at each seed's moment of the largest lead, and R at every moment; `now`, `never` [moments, items].

    A seed that diverged before it was first scored says nothing, unless all did.
    """
    leads = (now - never).mean(axis=1)
    seeds = dict.fromkeys(p.seed for p in curve if p.step) or dict.fromkeys(p.seed for p in curve)
    peaks = [max((n for n, p in enumerate(curve) if p.seed == s), key=leads.__getitem__) for s in seeds]
    tables = Tables(now[peaks], never[peaks], known, start)
    return tables, tuple(_ratio(float(each), tables.scale, LEAST_KNOWLEDGE) for each in leads)


def _ratio(part: float, whole: float, least: float, otherwise: float = 0.0) -> float:
    return float(part / whole) if whole > 0 and whole >= least else otherwise


def _log_odds(items: Sequence[ItemScore]) -> Values:
    return np.array([item.log_odds for item in items])


def _by_id(items: Sequence[ItemScore]) -> dict[str, float]:
    return {item.id: item.log_odds for item in items}


def _pick(items: Sequence[ItemScore], ids: Sequence[str]) -> tuple[ItemScore, ...]:
    """The scores of `ids`, in their order."""
    by_id = {item.id: item for item in items}
    missing = [i for i in ids if i not in by_id]
    if missing:
        raise InputError("Scores of an item are missing.", missing[0], "Score every model on the same items.")
    return tuple(by_id[i] for i in ids)


def _never(control: AttackResult | None, moment: CurvePoint, items: int) -> Values:
    """Log-odds by item of the control at `moment`."""
    return np.zeros(items) if control is None else np.array(_same_moment(control, moment).item_log_odds)


def _same_moment(control: AttackResult, moment: CurvePoint) -> CurvePoint:
    """The control's point at `moment`, or the last one before it where the control's cell ended early."""
    cell = [p for p in control.curve if (p.learning_rate, p.seed) == (moment.learning_rate, moment.seed)]
    earlier = [point for point in cell if point.step <= moment.step]
    if not earlier:
        raise InputError(
            "The control was attacked with another grid.",
            f"learning rate {moment.learning_rate:g}, seed {moment.seed}",
            "Attack it with the same settings.",
        )
    return max(earlier, key=lambda point: point.step)
