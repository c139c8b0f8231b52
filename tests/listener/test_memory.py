"""The memory budget: who may hold how much beside whom."""

from __future__ import annotations

import pytest

from relay.errors import MemoryFull
from relay.listener.memory import SMALL_BYTES_MAX, Memory

BUDGET = 64 * SMALL_BYTES_MAX
SMALL = SMALL_BYTES_MAX
BIG = SMALL_BYTES_MAX + 1


def test_big_requests_leave_an_eighth_to_small_ones():
    memory = Memory(BUDGET)
    bigs = [memory.reserve() for _ in range(55)]
    for one in bigs:
        one.set(BIG)
    with pytest.raises(MemoryFull, match=r"listen\.memory_bytes_max"):
        memory.reserve().set(BIG)
    smalls = [memory.reserve() for _ in range(8)]
    for one in smalls:
        one.set(SMALL)
    assert memory.held_bytes > BUDGET - SMALL
    with pytest.raises(MemoryFull):
        memory.reserve().set(SMALL)
    bigs[0].release()
    memory.reserve().set(SMALL)


def test_small_requests_may_take_all_of_it():
    memory = Memory(BUDGET)
    for _ in range(64):
        memory.reserve().set(SMALL)
    with pytest.raises(MemoryFull):
        memory.reserve().set(1)


def test_a_small_one_fits_beside_a_big_one_that_holds_more_than_the_budget():
    memory = Memory(BUDGET)
    giant = memory.reserve()
    giant.set(3 * BUDGET)
    for _ in range(8):
        memory.reserve().set(SMALL)
    with pytest.raises(MemoryFull):
        memory.reserve().set(SMALL)
    with pytest.raises(MemoryFull):
        memory.reserve().set(BIG)
    giant.set(4 * BUDGET)  # alone among the big ones, it may grow


def test_a_big_one_among_small_ones_alone_is_let_in_however_large():
    memory = Memory(BUDGET)
    memory.reserve().set(SMALL)
    memory.reserve().set(2 * BUDGET)
    assert memory.held_bytes == SMALL + 2 * BUDGET


def test_what_is_refused_changes_nothing_and_what_shrinks_always_may():
    memory = Memory(BUDGET)
    first, second = memory.reserve(), memory.reserve()
    first.set(50 * SMALL)
    second.set(5 * SMALL)
    with pytest.raises(MemoryFull):
        second.set(20 * SMALL)
    assert memory.held_bytes == 55 * SMALL
    second.set(SMALL)
    second.set(0)
    assert memory.held_bytes == 50 * SMALL


def test_a_check_holds_nothing():
    memory = Memory(BUDGET)
    first = memory.reserve()
    first.set(30 * SMALL)
    second = memory.reserve()
    second.check(20 * SMALL)
    with pytest.raises(MemoryFull):
        second.check(40 * SMALL)
    assert memory.held_bytes == 30 * SMALL


def test_all_is_given_back_at_the_end_and_what_was_handed_over_stays():
    memory = Memory(BUDGET)
    with memory.reserve() as first, memory.reserve() as second:
        first.set(BIG)
        second.set(SMALL)
        left = first.hand_over()
        first.release()
    assert memory.held_bytes == BIG
    left.release()
    left.release()
    assert (memory.small_bytes, memory.big_bytes) == (0, 0)
