"""What every spool promises on its face: one suite, run against the disk and against the fake that tests stand on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from fakes.spool import FakeSpool
from spool.disk import SpoolOnDisk, check_books, record, until

from relay.spool import Ref, Spool, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Opened = Callable[[], AbstractAsyncContextManager[Spool]]


@pytest.fixture(params=["disk", "fake"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    if request.param == "disk":
        return SpoolOnDisk(tmp_path).open

    @asynccontextmanager
    async def fake() -> AsyncIterator[Spool]:
        spool = FakeSpool()
        yield spool
        check_books(spool)

    return fake


async def append(spool: Spool, *records: object) -> None:
    await spool.append(list(records), deadline=asyncio.get_running_loop().time() + 5)


def only_lane(spool: Spool) -> int:
    (lane,) = spool.lanes()
    return lane.lane


def lease_all(spool: Spool, lane: int) -> list[Ref]:
    return spool.lease(lane, events_max=1 << 30, bytes_max=1 << 30)


async def test_chunks_come_out_in_order_with_their_bytes_and_leave_when_acked(opened: Opened):
    async with opened() as spool:
        given = [record(events=n, accepted_at_ms=n) for n in (1, 2, 3)]
        for one in given:
            await append(spool, one)
        refs = lease_all(spool, only_lane(spool))
        assert [ref.id for ref in refs] == sorted(ref.id for ref in refs)
        assert [(ref.events, ref.accepted_at_ms) for ref in refs] == [(1, 1), (2, 2), (3, 3)]
        chunks = await spool.read(refs)
        assert [chunk.text() for chunk in chunks] == [one.text for one in given]
        assert [chunk.travels_with() for chunk in chunks] == [one.travels_with()[1:] for one in given]
        spool.ack(refs)
        await until(lambda: spool.stats().acked_events == 6)
        assert spool.stats().events == 0
        assert spool.lanes() == []


async def test_a_leased_chunk_is_queued_and_leased_to_nobody_else(opened: Opened):
    async with opened() as spool:
        await append(spool, record(events=4))
        lane = only_lane(spool)
        refs = lease_all(spool, lane)
        assert lease_all(spool, lane) == []
        assert (spool.stats().events, spool.stats().in_flight_events) == (4, 4)
        assert spool.lanes()[0].oldest_accepted_at_ms == refs[0].accepted_at_ms


async def test_a_lease_keeps_to_its_bounds_but_gives_one_chunk_at_least(opened: Opened):
    async with opened() as spool:
        for _ in range(5):
            await append(spool, record(events=2))
        lane = only_lane(spool)
        assert len(spool.lease(lane, events_max=5, bytes_max=1 << 30)) == 2
        assert len(spool.lease(lane, events_max=1, bytes_max=1)) == 1
        assert len(spool.lease(lane, events_max=1 << 30, bytes_max=1)) == 1


async def test_released_chunks_keep_their_place_and_wake_the_holder(opened: Opened):
    async with opened() as spool:
        for _ in range(3):
            await append(spool, record())
        lane = only_lane(spool)
        woken: list[int] = []
        spool.subscribe(woken.append)
        refs = lease_all(spool, lane)
        woken.clear()
        spool.release(refs[1:])
        spool.release(refs[:1])
        assert woken == [lane, lane]
        assert lease_all(spool, lane) == refs


async def test_each_key_has_a_lane_of_its_own(opened: Opened):
    async with opened() as spool:
        for key in ("a", "b", "", "a"):
            await append(spool, record(key))
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == {"a": 2, "b": 1, "": 1}


async def test_submit_tells_when_it_is_stored(opened: Opened):
    async with opened() as spool:
        told: list[object] = []
        spool.submit([record(events=2)], deadline=asyncio.get_running_loop().time() + 5, done=told.append)
        assert told == []
        await until(lambda: bool(told))
        assert told == [None]
        assert spool.stats().enqueued_events == 2


async def test_a_buried_chunk_is_dead_and_the_books_balance(opened: Opened):
    async with opened() as spool:
        await append(spool, record(events=2))
        lane = only_lane(spool)
        await spool.bury(lease_all(spool, lane), Verdict(reason="rejected"))
        stats = spool.stats()
        assert (stats.events, stats.dead_events, stats.dead_lettered_events["rejected"]) == (0, 2, 2)
        assert lease_all(spool, lane) == []


async def test_events_born_dead_are_enqueued_and_dead_lettered(opened: Opened):
    async with opened() as spool:
        await append(spool, record(), record(dead=Verdict(reason="invalid")))
        stats = spool.stats()
        assert (stats.enqueued_events, stats.events, stats.dead_events) == (2, 1, 1)


async def test_parts_take_the_place_of_a_replaced_chunk_leased(opened: Opened):
    async with opened() as spool:
        await append(spool, record(events=3))
        lane = only_lane(spool)
        (whole,) = lease_all(spool, lane)
        given = [record(events=1), record(events=2)]
        parts = await spool.replace(whole, given)
        assert [chunk.text() for chunk in await spool.read(parts)] == [part.text for part in given]
        assert (spool.stats().events, spool.stats().in_flight_events) == (3, 3)
        assert lease_all(spool, lane) == []
        spool.ack(parts)
        await until(lambda: spool.stats().acked_events == 3)


async def test_parts_that_hold_other_events_are_our_mistake(opened: Opened):
    async with opened() as spool:
        await append(spool, record(events=3))
        (whole,) = lease_all(spool, only_lane(spool))
        with pytest.raises(AssertionError):
            await spool.replace(whole, [record(events=2)])
