"""The pairing is a pure function of (seed, step) and fair to every item."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.order import PairedOrder, permutation
from expunge.errors import InputError

orders = st.builds(
    PairedOrder,
    n_forget=st.integers(1, 30),
    n_retain=st.integers(0, 30),
    batch_size=st.integers(1, 12),
    seed=st.integers(-5, 2**40),
    n_held=st.integers(0, 20),
)


@given(orders, st.integers(0, 6))
def test_every_epoch_has_each_forget_item_once(order: PairedOrder, epoch: int) -> None:
    first = epoch * order.steps_per_epoch
    batches = [order.at(first + i)[0] for i in range(order.steps_per_epoch)]
    own = [[item for item in batch if item < order.n_forget] for batch in batches]
    assert sorted(chain(*own)) == list(range(order.n_forget))
    assert all(len(batch) == order.batch_size for batch in batches[:-1])


@given(orders)
def test_held_items_take_half_of_a_step_at_most_and_come_equally_often(order: PairedOrder) -> None:
    steps = [order.at(step)[0] for step in range(4 * order.steps_per_epoch + order.n_held)]
    drawn = [[item - order.n_forget for item in step if item >= order.n_forget] for step in steps]
    assert {len(held) for held in drawn} == {min(order.n_held, order.batch_size // 2)}
    everything = list(chain(*drawn))
    for start in range(0, len(everything) - order.n_held + 1, max(order.n_held, 1)):
        assert sorted(everything[start : start + order.n_held]) == list(range(order.n_held))


@given(orders, st.integers(0, 50))
def test_without_held_items_a_step_is_what_it_was(order: PairedOrder, step: int) -> None:
    """What a step draws does not depend on there being a field for them."""
    alone = replace(order, n_held=0)
    epoch, batch = divmod(step, alone.steps_per_epoch)
    items = permutation(order.n_forget, f"{order.seed}/forget/{epoch}")
    assert alone.at(step)[0] == items[batch * order.batch_size : (batch + 1) * order.batch_size]


@given(orders)
def test_the_retain_side_runs_through_whole_permutations(order: PairedOrder) -> None:
    steps = 3 * order.steps_per_epoch * (1 + order.n_retain // order.n_forget)
    drawn = list(chain(*(order.at(step)[1] for step in range(steps))))
    for start in range(0, len(drawn) - order.n_retain + 1, max(order.n_retain, 1)):
        assert sorted(drawn[start : start + order.n_retain]) == list(range(order.n_retain))


@given(orders, st.integers(0, 200))
def test_both_sides_have_one_length_unless_there_is_nothing_to_retain(order: PairedOrder, step: int) -> None:
    forget, retain = order.at(step)
    assert len(retain) == (len(forget) if order.n_retain else 0)


@given(orders, st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_the_order_of_asking_changes_nothing(order: PairedOrder, steps: list[int]) -> None:
    asked = {step: order.at(step) for step in steps}
    permutation.cache_clear()
    again = replace(order)
    assert {step: again.at(step) for step in reversed(steps)} == asked


def test_another_process_sees_the_same_order() -> None:
    order = PairedOrder(7, 5, 3, seed=11)
    code = "from expunge.data.order import PairedOrder as P; print([P(7, 5, 3, seed=11).at(i) for i in range(9)])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str([order.at(i) for i in range(9)])


def test_seed_epoch_and_side_each_change_the_permutation() -> None:
    order = PairedOrder(40, 40, 40, seed=0)
    seen = [*order.at(0), *order.at(1), *PairedOrder(40, 40, 40, seed=1).at(0)]
    assert len(set(seen)) == 6


@pytest.mark.parametrize("numbers", [(0, 3, 2), (3, -1, 2), (3, 3, 0)])
def test_impossible_sizes_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least"):
        PairedOrder(*numbers, seed=0)


def test_steps_count_from_zero() -> None:
    with pytest.raises(InputError, match="from 0"):
        PairedOrder(1, 1, 1, 0).at(-1)
