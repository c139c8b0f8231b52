"""Whether there is room, and that the answer does not swing."""

from __future__ import annotations

import pytest

from relay.errors import QueueFull
from relay.spool.folder import Space
from relay.spool.room import RESERVE_SHARE, Room

MIB = 1 << 20
FLOOR = 64 * MIB


def room(*, capacity: int = 1024 * MIB, free: int = 1 << 40) -> Room:
    made = Room(capacity_bytes=capacity, disk_free_bytes_min=FLOOR, lane_bytes_share_max=0.5)
    made.space = Space(free_bytes=free, size_bytes=1 << 41)
    return made


def is_ready(one: Room) -> bool:
    try:
        one.check_usual()
    except QueueFull:
        return False
    return True


def test_what_fits_to_the_byte_is_let_in_and_a_byte_more_is_not() -> None:
    one = room()
    left = one.capacity_bytes - one.capacity_bytes // RESERVE_SHARE
    one.check(left)
    with pytest.raises(QueueFull, match="the queue is full"):
        one.check(left + 1)


@pytest.mark.parametrize(
    ("one", "why"),
    [(room(free=FLOOR + 63), "disk_free_bytes_min"), (room(capacity=64), "the queue is full")],
    ids=["on the disk", "in the queue"],
)
def test_what_is_on_its_way_to_the_disk_counts(one: Room, why: str) -> None:
    one.check(63)
    one.pending_bytes = 1
    with pytest.raises(QueueFull, match=why):
        one.check(63)


def test_it_is_not_ready_below_a_usual_request_and_not_again_until_there_is_ample_room() -> None:
    one = room()
    answers = []
    for left in (3 * MIB, MIB, MIB - 1, MIB, 2 * MIB - 1, 2 * MIB, MIB, 0, 2 * MIB - 1):
        one.space = Space(free_bytes=FLOOR + left, size_bytes=1 << 41)
        answers.append(is_ready(one))
    assert answers == [True, True, False, False, False, True, True, False, False]


def test_a_small_queue_is_ready_while_it_has_room() -> None:
    one = room(capacity=8 * MIB)
    assert is_ready(one)
    one.used_bytes = 8 * MIB - 8 * MIB // RESERVE_SHARE
    assert not is_ready(one)
    one.used_bytes = 7 * MIB
    assert is_ready(one)
