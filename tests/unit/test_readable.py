"""What the probe reads as a recovery: hand numbers, no choice by the number reported, and when it keeps silent."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.audit.control import GOLD_MODEL, IGNORANCE
from expunge.audit.probe import Probed
from expunge.audit.readable import readable


def probed(*blocks: list[float]) -> Probed:
    means = tuple(float(np.mean(block)) for block in blocks)
    return Probed(tuple(0.5 for _ in blocks), means, 1 / 3, len(blocks[0]), tuple(map(tuple, blocks)))


KNEW = probed([0.0] * 20, [4.0] * 20)


def test_by_hand() -> None:
    found = readable(probed([2.0] * 20, [1.0] * 20), KNEW)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.items, found.seeds, found.control_log_odds) == (20, 1, 0.0)


def test_the_best_block_of_noise_is_not_reported_as_knowledge() -> None:
    """The maximum over 40 blocks of noise is far above 0; what the other half chose is not."""
    rng = np.random.default_rng(0)
    shares, best = [], []
    for _ in range(60):
        noise = probed(*rng.normal(size=(40, 20)).tolist())
        found = readable(noise, KNEW)
        assert found is not None
        shares.append(found.value)
        best.append(max(noise.log_odds) / 4)
    assert abs(np.mean(shares)) < 0.03 < 0.1 < np.mean(best)


def test_each_half_is_read_where_the_other_is_best() -> None:
    even, odd = [2.0, 0.0] * 10, [0.0, 2.0] * 10
    found = readable(probed(even, odd), KNEW)
    assert found is not None
    assert found.value == pytest.approx(0.0)


def test_what_a_model_that_never_knew_gives_away_was_not_kept() -> None:
    """Never against less than ignorance: a control that avoids the answers makes nobody else a knower."""
    gold = probed([1.0] * 20, [0.0] * 20)
    same, half = readable(gold, KNEW, gold), readable(probed([2.5] * 20, [0.0] * 20), KNEW, gold)
    assert same is not None and half is not None
    assert (same.value, half.value) == pytest.approx((0.0, 0.5))
    assert (same.control, same.control_log_odds) == (GOLD_MODEL, 1.0)
    plain, avoided = (readable(gold, KNEW, other) for other in (None, probed([-1.0] * 20)))
    assert plain is not None and plain == avoided
    assert (plain.value, plain.control) == (pytest.approx(0.25), IGNORANCE)
    assert readable(gold, KNEW, probed([3.5] * 20)) is None  # the original leads it by too little


@pytest.mark.parametrize(
    ("after", "before"),
    [
        (None, KNEW),
        (KNEW, None),
        (Probed((0.5,), (4.0,), 1 / 3, 20), KNEW),
        (KNEW, probed([0.9] * 20)),
        (probed([4.0] * 19), KNEW),
    ],
    ids=["not asked", "original not asked", "items not kept", "original hardly read", "other items"],
)
def test_silent_where_it_says_nothing(after: Probed | None, before: Probed | None) -> None:
    assert readable(after, before) is None


def test_a_probe_that_asked_a_few_facts_decides_nothing() -> None:
    for facts, told in ((7, False), (8, True)):
        found = readable(probed([0.0] * facts, [2.0] * facts), probed([0.0] * facts, [4.0] * facts))
        assert (found is not None) == told
