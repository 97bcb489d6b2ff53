"""The rows of a step and who gets them."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.order import PairedOrder
from expunge.unlearning.batches import StepBatches, even_parts
from expunge.unlearning.objectives.base import Totals
from expunge.unlearning.processes import Processes
from unlearning_runs import EXAMPLES, make_encoder

ENCODED = [make_encoder().encode(e.prompt, e.answer) for e in EXAMPLES]
LONG = [make_encoder().encode(e.prompt, f"the town {e.answer}") for e in EXAMPLES]


def batches(rank: int, world: int, per_forward: int, size: int, retain: int = 8) -> StepBatches:
    order = PairedOrder(7, retain, size, seed=3)
    return StepBatches(ENCODED[:7], LONG[:retain], order, per_forward, 0, Processes(rank, world), torch.device("cpu"))


@given(st.integers(0, 50), st.integers(1, 12))
def test_even_parts_cover_everything_once_and_evenly(n: int, parts: int) -> None:
    slices = even_parts(n, parts)
    assert list(chain.from_iterable(range(n)[part] for part in slices)) == list(range(n))
    lengths = [part.stop - part.start for part in slices]
    assert len(lengths) == parts
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_row_is_dealt_once_whoever_shares_the_step(world: int, rows: int, times: int, step: int) -> None:
    size = world * rows * times
    dealt = [list(batches(rank, world, rows, size).at(step)) for rank in range(world)]
    forget, retain = PairedOrder(7, 8, size, seed=3).at(step)
    counted = [part for parts in dealt for part in parts if part.weight == 1]
    assert sorted(i for part in counted for i in part.forget.index.tolist()) == sorted(forget)
    assert sorted(i for part in counted for i in part.retain.index.tolist()) == sorted(retain)  # type: ignore[union-attr]
    assert len({len(parts) for parts in dealt}) == 1
    assert all(1 <= len(part.forget) <= rows for parts in dealt for part in parts)
    assert len(dealt[0]) <= times


def test_totals_are_those_of_the_whole_step() -> None:
    for rank in (0, 1):
        assert batches(rank, 2, 1, 4).totals(0) == Totals(4, 4, 12, 4 * 11, 4 * 13)
        assert batches(rank, 2, 1, 4).totals(1) == Totals(3, 3, 9, 3 * 11, 3 * 13)


@pytest.mark.parametrize("rank", [0, 1])
def test_without_retain_items_there_is_no_retain_batch(rank: int) -> None:
    alone = batches(rank, 2, 2, 4, retain=0)
    assert all(part.retain is None for part in alone.at(0))
    assert alone.totals(0) == Totals(4, 4, 0, 4 * 11, 0)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.sets(st.integers(0, 6)))
def test_some_forget_items_are_dealt_once_too_and_the_totals_are_theirs(
    world: int, rows: int, step: int, wanted: set[int]
) -> None:
    dealt = [list(batches(rank, world, rows, world * rows).at(step, wanted.__contains__)) for rank in range(world)]
    forget = [i for i in PairedOrder(7, 8, world * rows, seed=3).at(step)[0] if i in wanted]
    counted = [i for parts in dealt for part in parts if part.weight for i in part.forget.index.tolist()]
    assert sorted(counted) == sorted(forget)
    assert len({len(parts) for parts in dealt}) == 1 and (bool(forget) == bool(dealt[0]))
    assert batches(0, world, rows, world * rows).totals(step, wanted.__contains__).forget_items == len(forget)
