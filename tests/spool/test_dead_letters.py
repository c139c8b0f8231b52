"""Dead letters on a real disk: chosen, queued anew, dropped, bounded; and lanes that an operator holds or rekeys."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from spool.disk import NOW_MS, append, check_books, record, take_all, until

from relay.errors import QueueFull, StoreFailed, StoreFull
from relay.spool import Verdict
from relay.spool.letters import Choice
from relay.spool.store import Changes, Store

if TYPE_CHECKING:
    from spool.disk import SpoolOnDisk

    from relay.spool.spool import DiskSpool

REJECTED = Verdict(reason="rejected", detail="no such project", status=400, attempts=1)
EXPIRED = Verdict(reason="expired", detail="too old")


async def bury(spool: DiskSpool, verdict: Verdict, *records: object) -> None:
    """Append each as a chunk of its own and set it aside."""
    for one in records:
        await append(spool, one)
        for lane in spool.lanes():
            if refs := spool.lease(lane.lane, events_max=1 << 20, bytes_max=1 << 30):
                await spool.bury(refs, verdict)


async def test_a_replayed_letter_is_queued_anew_and_both_books_say_so(disk: SpoolOnDisk):
    dead = record(events=3)
    async with disk.open() as spool:
        await bury(spool, REJECTED, dead)
        heard: list[int] = []
        spool.subscribe(heard.append)
        assert (await spool.replay(Choice())).events == 3
        stats = spool.stats()
        assert (stats.dead_events, stats.dead_replayed_events) == (0, 3)
        assert (stats.events, stats.enqueued_events) == (3, 6)
        assert heard == [spool.lanes()[0].lane]
        assert await take_all(spool) == [dead.text]


async def test_a_replayed_letter_stays_alive_over_a_restart_and_its_id_is_never_given_again(disk: SpoolOnDisk):
    dead, later = record(events=2), record()
    async with disk.open() as spool:
        await bury(spool, REJECTED, dead)
        await spool.replay(Choice())
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        stats = spool.stats()
        assert (stats.recovered_events, stats.dead_recovered_events) == (2, 0)
        await append(spool, later)
        assert await take_all(spool) == [dead.text, later.text]


async def test_the_age_of_a_replayed_letter_begins_again_or_it_would_expire_at_once(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await bury(spool, EXPIRED, record(accepted_at_ms=NOW_MS - 10**9))
        await spool.replay(Choice())
        (lane,) = spool.lanes()
        assert lane.oldest_accepted_at_ms == NOW_MS


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (Choice(), 0),
        (Choice(ids=(1, 3)), 10),
        (Choice(ids=(99,)), 111),
        (Choice(reason="expired"), 101),
        (Choice(reason="poison"), 111),
        (Choice(lanes=(1,)), 100),
        (Choice(lanes=()), 111),
        (Choice(lanes=(1,), reason="rejected"), 110),
        (Choice(died_before_ms=NOW_MS), 111),
        (Choice(died_before_ms=NOW_MS + 1), 0),
    ],
)
async def test_a_purge_drops_what_was_chosen_and_nothing_else(disk: SpoolOnDisk, choice: Choice, left: int):
    async with disk.open() as spool:
        await bury(spool, REJECTED, record("a", events=1))
        await bury(spool, EXPIRED, record("a", events=10))
        await bury(spool, REJECTED, record("b", events=100))
        tally = await spool.purge(choice)
        stats = spool.stats()
        assert (tally.events, stats.dead_events) == (111 - left, left)
        assert sum(stats.dropped_events.values()) == stats.dropped_events.get("purged", 0) == 111 - left
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert spool.stats().dead_recovered_events == left


async def test_many_letters_are_replayed_in_several_commits_each_once(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record() for _ in range(950)])
        (lane,) = spool.lanes()
        await spool.bury(spool.lease(lane.lane, events_max=1 << 20, bytes_max=1 << 30), REJECTED)
        heard: list[int] = []
        tally = await spool.replay(Choice(), lambda so_far: heard.append(so_far.chunks))
        assert tally.chunks == heard[-1] == 950
        assert len(heard) >= 4
        texts = await take_all(spool)
        assert len(texts) == len(set(texts)) == 950


async def test_what_dies_again_during_a_replay_is_not_replayed_again(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record() for _ in range(500)])
        (lane,) = spool.lanes()
        await spool.bury(spool.lease(lane.lane, events_max=1 << 20, bytes_max=1 << 30), REJECTED)
        burying: list[asyncio.Task[None]] = []

        def refuse(number: int) -> None:
            if refs := spool.lease(number, events_max=1 << 20, bytes_max=1 << 30):
                burying.append(asyncio.create_task(spool.bury(refs, REJECTED)))

        spool.subscribe(refuse)
        async with asyncio.timeout(10):
            assert (await spool.replay(Choice())).chunks == 500
        await asyncio.gather(*burying)
        assert spool.stats().dead_events == 500


async def test_a_corrupt_letter_is_not_replayed_for_it_would_die_at_once(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await bury(spool, Verdict(reason="corrupt"), record())
        await bury(spool, REJECTED, record(events=5))
        assert (await spool.replay(Choice())).events == 5
        assert spool.stats().dead_events == 1


async def test_a_replay_that_the_disk_refuses_leaves_the_letters_and_the_books_as_they_were(disk: SpoolOnDisk):
    class Refusing(Store):
        def commit(self, changes: Changes) -> None:
            if changes.revived:
                raise StoreFull("no room")
            super().commit(changes)

    async with disk.open(make_store=Refusing) as spool:
        await bury(spool, REJECTED, record(events=2))
        with pytest.raises(StoreFull):
            await spool.replay(Choice())
        assert (spool.stats().dead_events, spool.stats().events) == (2, 0)


async def test_dead_letters_past_their_bound_go_oldest_first_and_are_counted(disk: SpoolOnDisk):
    async with disk.open(dead_letter_bytes_max=10_000) as spool:
        for number in range(1, 9):
            await bury(spool, REJECTED, record(events=number, text=os.urandom(1900)))
        await until(lambda: sum(spool.stats().dropped_events.values()) >= 6)
        assert spool.stats().dropped_events == {"evicted": 1 + 2 + 3}
        assert spool.stats().dead_events == 4 + 5 + 6 + 7 + 8
        assert (await spool.purge(Choice(ids=(1, 2, 3)))).chunks == 0


async def test_a_bound_that_was_lowered_holds_from_the_next_start_on(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await bury(spool, REJECTED, *[record(text=os.urandom(1900)) for _ in range(5)])
    async with disk.open(dead_letter_bytes_max=0) as spool:
        await until(lambda: spool.stats().dead_events == 0)
        assert spool.stats().dropped_events == {"evicted": 5}


async def test_a_lane_whose_dead_letters_are_left_keeps_its_key(disk: SpoolOnDisk):
    dead = record("a")
    async with disk.open(lanes_max=1) as spool:
        await bury(spool, REJECTED, dead)
        with pytest.raises(QueueFull, match="lanes_max"):
            await append(spool, record("b"))
        await spool.purge(Choice())
        await append(spool, record("b"))
        assert [spool.key_of(lane.lane) for lane in spool.all_lanes()] == ["b"]


# -- lanes ------------------------------------------------------------------------------------------------------------


async def test_a_pause_is_remembered_over_restarts_until_it_is_taken_back(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record("a"), seconds=5)
        await append(spool, record("b"))
        await spool.hold_lane(1, paused=True)
    for paused in (True, False):
        async with disk.open() as spool:
            assert [lane.lane for lane in spool.all_lanes() if lane.paused] == [1] * paused
            await spool.hold_lane(1, paused=False)


async def test_a_paused_lane_is_not_forgotten_when_it_is_empty(disk: SpoolOnDisk):
    async with disk.open(lanes_max=1) as spool:
        await append(spool, record("a"))
        await spool.hold_lane(1, paused=True)
        await take_all(spool)
        await until(lambda: spool.stats().events == 0)
        with pytest.raises(QueueFull, match="lanes_max"):
            await append(spool, record("b"))


async def test_a_rekeyed_lane_travels_under_the_new_key_and_the_old_one_gets_a_lane_of_its_own(disk: SpoolOnDisk):
    old, dead = record("revoked", events=2), record("revoked", events=3)
    async with disk.open() as spool:
        await bury(spool, REJECTED, dead)
        await append(spool, old)
        held = spool.lease(1, events_max=1, bytes_max=1)
        await spool.rekey(1, "fresh")
        assert spool.key_of(1) == "fresh"
        spool.release(held)
        await append(spool, record("fresh", events=4))
        await append(spool, record("revoked", events=5))
        expected = {"fresh": 6, "revoked": 5}
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == expected
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == expected
        await spool.replay(Choice())
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == {"fresh": 9, "revoked": 5}


async def test_a_backlog_that_gets_a_key_which_has_a_lane_already_goes_beside_it_under_that_key(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record("fresh", events=1))
        await append(spool, record("revoked", events=2))
        await append(spool, record("", events=4))
        await spool.rekey(2, "fresh")
        await spool.rekey(3, "fresh")
    for _ in range(2):
        async with disk.open() as spool:
            await until(lambda: not spool.stats().recovering)
            assert {lane.lane: spool.key_of(lane.lane) for lane in spool.lanes()} == dict.fromkeys((1, 2, 3), "fresh")
            before = {lane.lane: lane.events for lane in spool.lanes()}
            await append(spool, record("fresh", events=8))
            after = {lane.lane: lane.events for lane in spool.lanes()}
            assert after == before | {1: before[1] + 8}, "new events go to the lane that had the key first"


async def test_a_rekeyed_lane_is_forgotten_when_it_is_empty_and_the_first_one_stays(disk: SpoolOnDisk):
    async with disk.open(lanes_max=2) as spool:
        await append(spool, record("fresh"))
        await append(spool, record("revoked"))
        await spool.rekey(2, "fresh")
        refs = spool.lease(2, events_max=9, bytes_max=1 << 20)
        spool.ack(refs)
        await until(lambda: spool.stats().events == 1)
        await append(spool, record("third"))
        await append(spool, record("fresh"))
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == {"fresh": 2, "third": 1}


async def test_a_closed_spool_refuses_operators_instead_of_keeping_them_waiting(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record())
        await spool.close()
        with pytest.raises(StoreFailed):
            await spool.hold_lane(1, paused=True)
        check_books(spool)
