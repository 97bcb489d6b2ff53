"""Scores and attacks that look like real ones, made without a model."""

from __future__ import annotations

import math

import numpy as np

from expunge.report.record import Attack, AttackControl, Change, CurvePoint, Score

CHANCE = 1 / 3


def score(log_odds: float, n: int, probability: float, chance: float = CHANCE) -> Score:
    """A score whose accuracy goes with its log-odds, with plausible bounds."""
    accuracy = round(n / (1 + (1 / chance - 1) * math.exp(-1.6 * log_odds))) / n
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n + 0.25 / n**2)
    return Score(
        accuracy=accuracy,
        log_odds=log_odds,
        chance=chance,
        probability=probability,
        rouge_l=min(1.0, probability * 1.7),
        n=n,
        accuracy_low=max(0.0, accuracy - half),
        accuracy_high=min(1.0, accuracy + half),
        log_odds_low=log_odds - 1.8 / math.sqrt(n),
        log_odds_high=log_odds + 1.8 / math.sqrt(n),
    )


def change(before: float, after: float, n: int) -> Change:
    """Scores before and after, from the two log-odds."""
    return Change(before=score(before, n, 0.38), after=score(after, n, 0.36 if after > 1 else 0.004))


def attack(name: str, recovery: float, rng: np.random.Generator, settings: dict[str, object]) -> Attack:
    """A grid of three learning rates and three seeds that saturates at `recovery` of log-odds 2.3."""
    start, n = score(-0.4, 17, 0.004), 17
    top = 2.3 * recovery
    curve = []
    for rate, reach in ((1e-5, 1.0), (5e-6, 0.7), (1e-6, 0.25)):
        for seed in range(3):
            for step in range(0, 61, 6):
                level = -0.4 + (top + 0.4) * reach * (1 - math.exp(-step / 15)) + rng.normal(0, 0.05) * (step > 0)
                point = score(level, n, 0.01)
                curve.append(CurvePoint(learning_rate=rate, seed=seed, step=step, examples_seen=step * 7,
                                        accuracy=point.accuracy, log_odds=level))  # fmt: skip
    best = max(curve, key=lambda p: p.log_odds)
    reached = score(best.log_odds, n, 0.1)
    return Attack(
        name=name,
        accuracy=reached.accuracy,
        log_odds=best.log_odds,
        recovery=best.log_odds / 2.3,
        recovery_low=best.log_odds / 2.3 - 0.19,
        recovery_high=best.log_odds / 2.3 + 0.17,
        accuracy_low=reached.accuracy_low,
        accuracy_high=reached.accuracy_high,
        log_odds_low=reached.log_odds_low,
        log_odds_high=reached.log_odds_high,
        chance=CHANCE,
        control=AttackControl(accuracy=CHANCE, log_odds=0.0),
        start=start,
        best=best,
        curve=tuple(curve),
        settings=settings,
        budget="3 learning rates, 3 seeds, up to 60 steps on 7 facts",
        rho=0.73 if recovery > 0.3 else 0.98,
        samples={f"item-{i}": "Ankara" for i in range(3)},
        seconds=61.5,
    )


def sweep(recovery: float, rng: np.random.Generator) -> Attack:
    """Two roundings in three groups, of which the coarse ones bring back `recovery` of log-odds 2.3."""
    start = score(-0.4, 24, 0.004)
    curve = [CurvePoint(learning_rate=0.0, seed=0, step=0, examples_seen=0, accuracy=start.accuracy,
                        log_odds=-0.4, variant="as it is")]  # fmt: skip
    for bits, reach in ((8, 0.02), (4, 1.0)):
        for group in (32, 64, 128):
            level = -0.4 + (2.3 * recovery + 0.4) * reach + rng.normal(0, 0.05)
            curve.append(CurvePoint(learning_rate=0.0, seed=0, step=len(curve), examples_seen=0,
                                    accuracy=score(level, 24, 0.01).accuracy, log_odds=level,
                                    variant=f"int{bits}, groups of {group}",
                                    original=1.0 if bits == 8 else 0.95 - 0.002 * group))  # fmt: skip
    best = max(curve, key=lambda p: p.log_odds)
    return Attack(
        name="quantise",
        accuracy=best.accuracy,
        log_odds=best.log_odds,
        recovery=best.log_odds / 2.3,
        recovery_low=best.log_odds / 2.3 - 0.21,
        recovery_high=best.log_odds / 2.3 + 0.18,
        chance=CHANCE,
        control=AttackControl(accuracy=CHANCE, log_odds=0.0),
        start=start,
        best=best,
        curve=tuple(curve),
        settings={"bits": [8, 4], "groups": [32, 64, 128]},
        budget="6 variants",
        rho=0.97,
        samples={f"item-{i}": "Ankara" for i in range(24)},
        seconds=12.5,
    )
