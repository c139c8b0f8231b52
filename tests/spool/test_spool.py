"""The spool on a real disk: what it was given it keeps, in order, across restarts, and its books balance."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest
from spool.disk import NOW_MS, SpoolOnDisk, append, check_books, record, take_all, until

from relay.errors import (
    AnswerDue,
    DiskFailing,
    QueueFull,
    SpoolForeign,
    SpoolLocked,
    SpoolTooNew,
    SpoolUnfit,
    StoreFailed,
    StoreFull,
)
from relay.spool import Verdict
from relay.spool.folder import hold, holder_of
from relay.spool.store import APPLICATION_ID, FILE_NAME, FORMAT, Changes, Row, Store
from relay.spool.table import PAGE_BYTES
from relay.spool.writer import COMMIT_BYTES_MAX

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_was_appended_comes_out_byte_for_byte_in_order(disk: SpoolOnDisk):
    given = [record(events=3, accepted_at_ms=n) for n in range(5)]
    async with disk.open() as spool:
        for one in given:
            await append(spool, one)
        assert await take_all(spool) == [one.text for one in given]
        await until(lambda: spool.stats().events == 0)
        assert spool.stats().acked_events == 15


async def test_what_was_not_settled_is_there_after_a_restart(disk: SpoolOnDisk):
    given = [record(events=2) for _ in range(4)]
    async with disk.open() as spool:
        for one in given:
            await append(spool, one)
        await take_all(spool, settle=False)
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert spool.stats().recovered_events == 8
        assert await take_all(spool) == [one.text for one in given]


async def test_what_was_settled_is_gone_after_a_restart(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record())
        await take_all(spool)
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert spool.stats().events == 0
        assert await take_all(spool) == []


async def test_ids_grow_across_restarts_even_when_the_queue_was_empty(disk: SpoolOnDisk):
    seen = []
    for _ in range(3):
        async with disk.open() as spool:
            await append(spool, record())
            (lane,) = spool.lanes()
            (ref,) = spool.lease(lane.lane, events_max=1, bytes_max=1)
            seen.append(ref.id)
            spool.ack([ref])
    assert seen == sorted(set(seen))


async def test_requests_that_wait_together_share_a_commit_and_a_chunk(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await asyncio.gather(*[append(spool, record()) for _ in range(200)])
        assert sum(events for _, events in disk.commits) == 200
        assert len(disk.commits) < 50
        (lane,) = spool.lanes()
        refs = spool.lease(lane.lane, events_max=10_000, bytes_max=1 << 30)
        assert len(refs) < 50
        assert sum(ref.events for ref in refs) == 200


@pytest.mark.parametrize(
    "other", [{"key": "secret-b"}, {"envelope": b'"user":{}'}, {"headers": b""}, {"skew_ms": 5000}, {"skew_ms": None}]
)
async def test_requests_that_differ_around_their_events_never_share_a_chunk(disk: SpoolOnDisk, other: dict):
    async with disk.open() as spool:
        await asyncio.gather(append(spool, record()), append(spool, record(**other)), append(spool, record()))
        chunks = []
        for lane in spool.lanes():
            chunks += await spool.read(spool.lease(lane.lane, events_max=99, bytes_max=1 << 20))
        kinds = {(spool.key_of(chunk.lane), *chunk.travels_with()) for chunk in chunks}
        assert len(kinds) == 2
        assert sum(chunk.events for chunk in chunks) == 3


async def test_a_merged_chunk_stays_within_its_bounds(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=10, chunk_bytes_max=600) as spool:
        await asyncio.gather(*[append(spool, record(events=4)) for _ in range(30)])
        (lane,) = spool.lanes()
        chunks = await spool.read(spool.lease(lane.lane, events_max=10_000, bytes_max=1 << 30))
        assert max(chunk.events for chunk in chunks) <= 10
        assert max(chunk.text_bytes for chunk in chunks) <= 600


async def test_one_lane_never_holds_another_key_s_events(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await asyncio.gather(*[append(spool, record(key)) for key in ("a", "b", "", "a")])
        held = {spool.key_of(lane.lane): lane.events for lane in spool.lanes()}
        assert held == {"a": 2, "b": 1, "": 1}
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == held


async def test_a_released_chunk_comes_first_again(disk: SpoolOnDisk):
    async with disk.open() as spool:
        for _ in range(3):
            await append(spool, record())
        (lane,) = spool.lanes()
        first, second, third = (spool.lease(lane.lane, events_max=1, bytes_max=1)[0] for _ in range(3))
        spool.release([second])
        spool.release([first])
        assert spool.lease(lane.lane, events_max=2, bytes_max=1 << 20) == [first, second]
        assert spool.lease(lane.lane, events_max=2, bytes_max=1 << 20) == []
        spool.release([third])
        assert spool.stats().in_flight_events == 2


async def test_a_lease_stays_within_its_bounds_but_for_a_first_chunk(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record() for _ in range(6)])
        (lane,) = spool.lanes()
        assert len(spool.lease(lane.lane, events_max=2, bytes_max=1 << 20)) == 2
        assert len(spool.lease(lane.lane, events_max=99, bytes_max=1)) == 1
        assert len(spool.lease(lane.lane, events_max=0, bytes_max=0)) == 1


async def test_subscribers_hear_of_new_released_and_recovered_chunks(disk: SpoolOnDisk):
    async with disk.open() as spool:
        heard: list[int] = []
        spool.subscribe(heard.append)
        await append(spool, record())
        (lane,) = spool.lanes()
        assert heard == [lane.lane]
        refs = spool.lease(lane.lane, events_max=1, bytes_max=1)
        spool.release(refs)
        assert heard == [lane.lane] * 2
    async with disk.open() as spool:
        spool.subscribe(heard.append)
        await until(lambda: len(heard) == 3)


async def test_a_buried_chunk_is_a_dead_letter_and_never_leased_again(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record(events=3))
        (lane,) = spool.lanes()
        refs = spool.lease(lane.lane, events_max=9, bytes_max=1 << 20)
        await spool.bury(refs, Verdict(reason="rejected", detail="no such project", status=400, attempts=1))
        check_books(spool)
        assert spool.stats().dead_lettered_events == {"rejected": 3}
        assert await take_all(spool) == []
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        stats = spool.stats()
        assert (stats.events, stats.dead_events, stats.dead_recovered_events) == (0, 3, 3)
        assert await take_all(spool) == []


async def test_events_born_dead_are_stored_with_the_good_ones_and_counted_as_both(disk: SpoolOnDisk):
    async with disk.open() as spool:
        bad = record(dead=Verdict(reason="invalid", detail="no eventName"))
        good = record()
        await append(spool, good, bad)
        stats = spool.stats()
        assert (stats.enqueued_events, stats.events, stats.dead_events) == (2, 1, 1)
        assert await take_all(spool) == [good.text]


async def test_the_parts_of_a_replaced_chunk_take_its_place_leased(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record(events=4))
        (lane,) = spool.lanes()
        (whole,) = spool.lease(lane.lane, events_max=9, bytes_max=1 << 20)
        halves = [record(events=2), record(events=2)]
        parts = await spool.replace(whole, halves)
        check_books(spool)
        assert spool.stats().events == spool.stats().in_flight_events == 4
        assert [chunk.text() for chunk in await spool.read(parts)] == [half.text for half in halves]
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert await take_all(spool) == [half.text for half in halves]


async def test_a_damaged_chunk_is_set_aside_and_the_rest_delivered(disk: SpoolOnDisk):
    good = record(events=2)
    async with disk.open() as spool:
        await append(spool, record(events=3))
        await append(spool, good)
    with sqlite3.connect(disk.directory / "spool" / FILE_NAME) as connection:
        connection.execute("UPDATE queue_default SET data = zeroblob(100) WHERE _id = 1")
    connection.close()
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert await take_all(spool) == [good.text]
        assert spool.stats().dead_lettered_events == {"corrupt": 3}


async def test_a_second_holder_is_told_who_holds_the_folder(disk: SpoolOnDisk):
    async with disk.open():
        with pytest.raises(SpoolLocked, match=f"process {os.getpid()}"):
            await asyncio.to_thread(hold, disk.directory)
        assert await asyncio.to_thread(holder_of, disk.directory) == f"process {os.getpid()}"
    assert await asyncio.to_thread(holder_of, disk.directory) is None


async def test_folder_and_files_are_the_owner_s_alone(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record())
        folder = disk.directory / "spool"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
        assert modes.pop("spool") == 0o700
        assert set(modes.values()) == {0o600}, modes
        assert len(modes) >= 3


async def test_a_full_queue_refuses_new_events_and_takes_them_again_once_it_drains(disk: SpoolOnDisk):
    async with disk.open(bytes_max=40 * 1024 * 1024) as spool:

        async def fill() -> None:
            while True:
                await append(spool, record(text=os.urandom(60_000)))

        with pytest.raises(QueueFull, match="full"):
            await fill()
        assert spool.stats().bytes <= 8 * 1024 * 1024
        assert spool.not_ready() is not None
        await take_all(spool)
        await until(lambda: spool.stats().events == 0)
        assert spool.not_ready() is None
        await append(spool, record())


async def test_a_log_that_somebody_reads_on_and_on_counts_and_is_cut_when_he_ends(disk: SpoolOnDisk):
    """What is delivered at once takes no room in the file, yet SQLite writes all of it to the log, and on behind it."""
    bytes_max = 40 << 20
    folder = disk.directory / "spool"

    def on_disk() -> int:
        return sum(file.stat().st_size for file in folder.iterdir())

    async with disk.open(bytes_max=bytes_max) as spool:
        await append(spool, record())
        other = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT COUNT(*) FROM queue_default").fetchall()

        async def load() -> None:
            for _ in range(300):
                await append(spool, record(text=os.urandom(400_000)))
                await take_all(spool)

        with pytest.raises(QueueFull):
            await load()
        assert on_disk() < bytes_max + (12 << 20)
        other.close()
        await until(lambda: on_disk() < bytes_max // 2 and spool.not_ready() is None)
        await append(spool, record())


async def test_a_disk_at_its_floor_refuses_new_events(disk: SpoolOnDisk):
    async with disk.open(disk_free_bytes_min=1 << 60) as spool:
        with pytest.raises(QueueFull, match="disk_free_bytes_min"):
            await append(spool, record())


async def test_the_number_of_lanes_is_bounded_and_idle_ones_make_room(disk: SpoolOnDisk):
    async with disk.open(lanes_max=3) as spool:
        for key in ("a", "b", "c"):
            await append(spool, record(key))
        with pytest.raises(QueueFull, match="lanes_max"):
            await append(spool, record("d"))
        await take_all(spool)
        await until(lambda: spool.stats().events == 0)
        await append(spool, record("d"))
        assert [spool.key_of(lane.lane) for lane in spool.lanes()] == ["d"]
    async with disk.open(lanes_max=3) as spool:
        await until(lambda: not spool.stats().recovering)
        assert [spool.key_of(lane.lane) for lane in spool.lanes()] == ["d"]


async def test_a_lane_whose_backlog_is_not_counted_yet_is_never_forgotten(disk: SpoolOnDisk):
    async with disk.open(lanes_max=2, chunk_events_max=1) as spool:
        await append(spool, *[record("a", text=b"{}") for _ in range(12_000)])
        await append(spool, record("b"))
    async with disk.open(lanes_max=2) as spool:
        assert spool.stats().recovering
        assert [lane.key for lane in spool.all_lanes()] == ["a", "b"]
        with pytest.raises(QueueFull, match="lanes_max"):
            await append(spool, record("c"))
        await spool.recovered()
        assert {spool.key_of(lane.lane): lane.events for lane in spool.lanes()} == {"a": 12_000, "b": 1}


async def test_a_stuck_lane_keeps_to_its_share_once_others_exist(disk: SpoolOnDisk):
    async with disk.open(bytes_max=40 * 1024 * 1024, lane_bytes_share_max=0.25) as spool:
        stuck: set[int] = set()
        spool.bound_share_of(stuck.__contains__)

        async def fill(key: str) -> None:
            while True:
                await append(spool, record(key, text=os.urandom(60_000)))

        await append(spool, record("stuck"))
        stuck.add(spool.lanes()[0].lane)
        for _ in range(40):
            await append(spool, record("stuck", text=os.urandom(60_000)))  # alone it may have all
        await append(spool, record("moving"))
        with pytest.raises(QueueFull, match="lane_bytes_share_max"):
            await append(spool, record("stuck", text=os.urandom(60_000)))
        with pytest.raises(QueueFull, match="the queue is full"):
            await fill("moving")


async def test_what_lies_behind_a_parked_lane_that_fills_the_window_is_still_found(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record("parked", text=b"{}") for _ in range(500)])
        await append(spool, *[record("moving", text=b"{}") for _ in range(5)])
    async with disk.open(index_entries_max=100) as spool:
        await until(lambda: not spool.stats().recovering)
        moving = next(lane.lane for lane in spool.lanes() if spool.key_of(lane.lane) == "moving")
        taken = 0
        while taken < 5:
            refs = spool.lease(moving, events_max=99, bytes_max=1 << 20)
            taken += len(refs)
            spool.ack(refs)
            await asyncio.sleep(0.005)
        assert taken == 5


class FailingStore(Store):
    """Fails the commits whose numbers are in `plan`."""

    plan: dict[int, Exception]
    commits = 0
    after_the_fact = False
    """Fail after the transaction is on the disk, as an fsync may."""

    def commit(self, changes: Changes) -> None:
        self.commits += 1
        error = self.plan.get(self.commits)
        if error is not None and not self.after_the_fact:
            raise error
        super().commit(changes)
        if error is not None:
            raise error


def failing(plan: dict[int, Exception], *, after_the_fact: bool = False):
    class Planned(FailingStore):
        pass

    Planned.plan, Planned.after_the_fact = plan, after_the_fact
    return Planned


async def test_a_failed_commit_is_never_answered_as_stored_and_the_next_one_recovers(disk: SpoolOnDisk):
    kept = record()
    async with disk.open(make_store=failing({1: StoreFailed("disk I/O error")})) as spool:
        with pytest.raises(DiskFailing, match="disk I/O error"):
            await append(spool, record())
        assert spool.not_ready() is not None
        await until(lambda: spool.not_ready() is None)
        await append(spool, kept)
        assert await take_all(spool) == [kept.text]


async def test_rows_of_a_commit_that_failed_after_the_fact_are_found_and_counted_once(disk: SpoolOnDisk):
    doubtful, kept = record(), record()
    async with disk.open(make_store=failing({1: StoreFailed("fsync")}, after_the_fact=True)) as spool:
        with pytest.raises(DiskFailing):
            await append(spool, doubtful)
        await until(lambda: spool.not_ready() is None)
        await append(spool, kept)
        check_books(spool)
        assert spool.stats().recovered_events == spool.stats().enqueued_events == 1
        assert await take_all(spool) == [doubtful.text, kept.text]


async def test_a_lane_whose_first_commit_failed_has_its_key_after_a_restart(disk: SpoolOnDisk):
    async with disk.open(make_store=failing({1: StoreFailed("disk I/O error")})) as spool:
        with pytest.raises(DiskFailing):
            await append(spool, record("secret-b"))
        await until(lambda: spool.not_ready() is None)
        await append(spool, record("secret-b"))
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert [(lane.key, lane.paused) for lane in spool.lanes()] == [("secret-b", False)]


async def test_after_a_failure_nothing_is_stored_behind_the_old_log_not_even_while_somebody_reads_it(
    disk: SpoolOnDisk,
):
    log = disk.directory / "spool" / f"{FILE_NAME}-wal"
    async with disk.open(make_store=failing({6: StoreFailed("fsync")})) as spool:
        for _ in range(5):
            await append(spool, record(text=os.urandom(100_000)))
        other = sqlite3.connect(disk.directory / "spool" / FILE_NAME, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT COUNT(*) FROM queue_default").fetchall()
        with pytest.raises(DiskFailing):
            await append(spool, record())
        await asyncio.sleep(2)
        assert "another process holds its lock" in (spool.not_ready() or "")
        assert log.stat().st_size > 500_000
        other.close()
        await until(lambda: spool.not_ready() is None)
        assert log.stat().st_size < 50_000, "what was stored before is in the file, and the log is a new one"
        await append(spool, record())


async def test_a_log_that_cannot_be_emptied_is_told_and_the_store_is_opened_anew(disk: SpoolOnDisk):
    calls: list[str] = []

    class Failing(Store):
        def checkpoint(self) -> None:
            calls.append("checkpoint")
            if len(calls) == 1:
                raise StoreFailed("emptying the log: SQLITE_IOERR_FSYNC: disk I/O error")
            super().checkpoint()

        def reopen(self) -> None:
            calls.append("reopen")
            super().reopen()

    async with disk.open(make_store=Failing) as spool:

        async def load() -> None:
            for _ in range(14):
                with contextlib.suppress(DiskFailing):
                    await append(spool, record(text=os.urandom(400_000)))

        await load()
        await until(lambda: calls == ["checkpoint", "reopen"] and spool.not_ready() is None)
        await load()
        await until(lambda: calls == ["checkpoint", "reopen", "checkpoint"])


def test_a_store_that_failed_leaves_its_log_for_the_next_start_and_a_sound_one_leaves_none(tmp_path: Path):
    log = tmp_path / f"{FILE_NAME}-wal"
    rows = [Row(1, 1, 1, NOW_MS, b"row")]
    store = Store(tmp_path, bytes_max=64 << 20)
    store._table.writer.execute("PRAGMA query_only=ON")
    with pytest.raises(StoreFailed):
        store.commit(Changes(rows=rows))
    store._table.writer.execute("PRAGMA query_only=OFF")
    store.commit(Changes(rows=rows))
    store.close()
    assert log.stat().st_size > PAGE_BYTES
    store = Store(tmp_path, bytes_max=64 << 20)
    assert log.stat().st_size == 0
    assert store.read([1]) == {1: (1, b"row")}
    store.close()
    assert not log.exists()


async def test_deletes_that_failed_are_done_by_a_later_commit(disk: SpoolOnDisk):
    async with disk.open(make_store=failing({2: StoreFailed("disk I/O error")})) as spool:
        await append(spool, record())
        await take_all(spool)
        await until(lambda: spool.stats().events == 0)
        assert spool.stats().acked_events == 1


async def test_a_full_store_still_deletes_what_was_delivered(disk: SpoolOnDisk):
    async with disk.open(make_store=failing({2: StoreFull("database or disk is full")})) as spool:
        await append(spool, record())
        (lane,) = spool.lanes()
        spool.ack(spool.lease(lane.lane, events_max=1, bytes_max=1))
        with pytest.raises(QueueFull):
            await append(spool, record())
        await until(lambda: spool.stats().acked_events == 1)
        await append(spool, record())


async def test_the_process_is_told_to_end_when_commits_keep_failing(disk: SpoolOnDisk):
    endless = {n: StoreFailed("gone") for n in range(1, 1000)}

    class Broken(failing(endless)):
        def reopen(self) -> None:
            raise StoreFailed("gone")

    async with disk.open(make_store=Broken, failures_max=3) as spool:
        with pytest.raises(DiskFailing):
            await append(spool, record())
        await until(lambda: bool(disk.given_up))


class SlowStore(Store):
    """Commits take a second."""

    def commit(self, changes: Changes) -> None:
        import time  # noqa: PLC0415

        time.sleep(0.6)
        super().commit(changes)


async def test_a_slow_disk_is_answered_at_the_deadline_and_says_what_is_known(disk: SpoolOnDisk):
    async with disk.open(make_store=SlowStore) as spool:
        under_way = asyncio.create_task(append(spool, record(), seconds=0.2))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(append(spool, record(), seconds=0.2))
        with pytest.raises(AnswerDue) as first:
            await under_way
        with pytest.raises(AnswerDue) as second:
            await waiting
        assert (first.value.ambiguous, second.value.ambiguous) == (True, False)
        await until(lambda: spool.stats().enqueued_events == 1)
        await append(spool, record())
        assert spool.stats().enqueued_events == 2


async def test_a_commit_takes_so_many_bytes_of_what_waits_and_leaves_the_rest_to_the_next(disk: SpoolOnDisk):
    sizes: list[int] = []

    class Weighing(Store):
        def commit(self, changes: Changes) -> None:
            sizes.append(sum(len(row.data) for row in changes.rows))
            super().commit(changes)

    async with disk.open(make_store=Weighing) as spool:
        noise = [record(f"key-{at % 4}", text=os.urandom(500_000)) for at in range(60)]
        await asyncio.gather(*[append(spool, one, seconds=20) for one in noise])
        assert sum(sizes) > 60 * 500_000
        assert max(sizes) <= COMMIT_BYTES_MAX
        assert max(sizes) > 4 * 500_000, "too little waited at once to prove anything"


async def test_a_client_that_goes_away_leaves_the_books_in_order(disk: SpoolOnDisk):
    async with disk.open(make_store=SlowStore) as spool:
        task = asyncio.create_task(append(spool, record()))
        await asyncio.sleep(0.05)
        task.cancel()
        await until(lambda: spool.stats().enqueued_events == 1)
        await append(spool, record())
        check_books(spool)
        assert (spool.stats().events, spool.stats().enqueued_events) == (2, 2)


async def test_an_index_larger_than_a_page_is_recovered_whole_and_appends_do_not_wait(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record(text=b"{}") for _ in range(12_000)])
    async with disk.open() as spool:
        await append(spool, record(events=5))
        await until(lambda: not spool.stats().recovering)
        check_books(spool)
        stats = spool.stats()
        assert (stats.recovered_events, stats.enqueued_events, stats.events) == (12_000, 5, 12_005)
        assert len(await take_all(spool)) == 12_001


async def test_a_backlog_beyond_the_window_in_memory_is_delivered_whole(disk: SpoolOnDisk):
    async with disk.open(chunk_events_max=1, index_entries_max=100) as spool:
        await append(spool, *[record(text=b"{}") for _ in range(1000)])
        assert spool.stats().events == 1000
    async with disk.open(index_entries_max=100) as spool:
        await until(lambda: not spool.stats().recovering)
        assert spool.stats().events == 1000
        await append(spool, record(text=b"{}"))
        delivered = 0
        while spool.stats().events:
            delivered += len(await take_all(spool))
            await asyncio.sleep(0.01)
        assert delivered == 1001


async def test_a_newer_format_is_refused_and_not_touched(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record())
    file = disk.directory / "spool" / FILE_NAME
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(SpoolTooNew, match="newer release"):
        async with disk.open():
            pass
    assert file.read_bytes() == before


async def test_a_file_of_somebody_else_is_refused_and_not_touched(disk: SpoolOnDisk):
    file = disk.directory / "spool" / FILE_NAME
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA application_id=7")
        connection.execute("CREATE TABLE diary (page)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(SpoolForeign):
        async with disk.open():
            pass
    assert file.read_bytes() == before


def make_plain(file: Path, columns: str) -> None:
    """Make a file as persist-queue makes one that nobody has marked."""
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute(f"CREATE TABLE queue_default (_id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})")
        connection.execute("INSERT INTO queue_default DEFAULT VALUES")
    connection.close()


@pytest.mark.parametrize("columns", ["data BLOB, timestamp FLOAT", "page TEXT"], ids=["persist-queue's own", "a diary"])
async def test_a_file_that_nobody_has_marked_and_that_is_not_ours_is_refused_and_not_touched(
    disk: SpoolOnDisk, columns: str
):
    file = disk.directory / "spool" / FILE_NAME
    make_plain(file, columns)
    before = file.read_bytes()
    with pytest.raises(SpoolForeign):
        async with disk.open():
            pass
    assert file.read_bytes() == before
    assert {one.name for one in file.parent.iterdir()} == {FILE_NAME, "lock"}


async def test_a_file_of_the_format_before_is_brought_to_ours_with_what_it_holds(disk: SpoolOnDisk):
    """Format 0 is what a crash leaves between persist-queue's table and our tables beside it."""
    given = record(events=2)
    async with disk.open() as spool:
        await append(spool, given)
    file = disk.directory / "spool" / FILE_NAME
    with sqlite3.connect(file) as connection:
        for statement in ("DROP TABLE meta", "DROP TABLE lanes", "DROP TABLE dead_letters", "DROP INDEX chunks"):
            connection.execute(statement)
        connection.execute("PRAGMA application_id=0")
        connection.execute("PRAGMA user_version=0")
    connection.close()
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert await take_all(spool) == [given.text]
    header = file.read_bytes()[:100]
    assert (header[60:64], header[68:72]) == (FORMAT.to_bytes(4, "big"), APPLICATION_ID.to_bytes(4, "big"))


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs"])
def test_a_network_file_system_is_refused_before_anything_is_made(tmp_path: Path, kind: str):
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 {os.major(device)}:{os.minor(device)} / / rw,relatime - {kind} server:/export rw\n")
    with pytest.raises(SpoolUnfit, match=f"network file system \\({kind}\\)"):
        hold(tmp_path / "queue", mounts)
    assert not (tmp_path / "queue").exists()
    mounts.write_text(mounts.read_text().replace(kind, "tmpfs"))
    folder = hold(tmp_path / "queue", mounts)
    assert folder.volatile
    folder.close()


def test_the_file_says_what_it_is(tmp_path):
    Store(tmp_path, bytes_max=64 << 20).close()
    header = (tmp_path / FILE_NAME).read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == FORMAT


def test_free_pages_are_given_back_by_as_many_as_were_asked_for(tmp_path):
    store = Store(tmp_path, bytes_max=256 << 20)
    rows = [Row(number, 1, 1, NOW_MS, os.urandom(8000)) for number in range(1, 1001)]
    store.commit(Changes(lanes=[(1, "k")], rows=rows))
    store.commit(Changes(deletes=[row.id for row in rows[1:]]))
    before = store.usage().free_bytes
    store.give_back(300)
    assert before - store.usage().free_bytes == 300 * 4096
    store.close()


def test_a_delete_takes_just_what_was_asked_for(tmp_path):
    store = Store(tmp_path, bytes_max=64 << 20)
    chance = random.Random(7)  # noqa: S311 – a choice of rows, no secret
    left, last = set(), 0
    for _ in range(40):
        rows = [Row(last + number, 1, 1, NOW_MS, b"row") for number in range(1, 13)]
        last += len(rows)
        store.commit(Changes(rows=rows))
        left |= {row.id for row in rows}
        gone = [chunk for chunk in chance.sample(sorted(left), len(left)) if chance.random() < 0.7]  # in any order
        store.commit(Changes(deletes=gone))
        left -= set(gone)
        assert [entry.id for entry in store.entries(0, last, 1000)] == sorted(left)
    store.close()


def test_persist_queue_gives_what_the_store_builds_on(tmp_path):
    """The names and settings that a new persist-queue must not change under us."""
    store = Store(tmp_path, bytes_max=64 << 20)
    table = store._table
    pragmas = {
        name: table.writer.execute(f"PRAGMA {name}").fetchone()[0]
        for name in (
            *("journal_mode", "synchronous", "secure_delete", "auto_vacuum", "max_page_count", "page_size"),
            *("journal_size_limit", "wal_autocheckpoint"),
        )
    }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 0,
        "auto_vacuum": 2,
        "max_page_count": (64 - 32) << 8,
        "page_size": 4096,
        "journal_size_limit": 16 << 20,
        "wal_autocheckpoint": 0,
    }
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        table.reader.execute("DELETE FROM meta")
    columns = [row[1] for row in table.reader.execute("PRAGMA table_info(queue_default)")]
    assert columns == ["_id", "timestamp", "lane", "events", "bytes", "data"]
    assert table.writer is not table.reader
    assert table.sql_delete == "DELETE FROM `queue_default` WHERE _id BETWEEN ? AND ?"
    plan = table.reader.execute(
        "EXPLAIN QUERY PLAN SELECT q.lane FROM queue_default AS q INDEXED BY chunks WHERE q._id > 1"
    )
    assert "COVERING INDEX chunks" in plan.fetchone()[3]
    store.close()


async def test_the_file_shrinks_on_disk_after_a_backlog_though_nothing_comes_in_any_more(disk: SpoolOnDisk):
    file = disk.directory / "spool" / FILE_NAME
    steps: list[int] = []

    class Counting(Store):
        def give_back(self, pages: int) -> None:
            before = self.usage().free_bytes
            super().give_back(pages)
            steps.append(before - self.usage().free_bytes)

    async with disk.open(make_store=Counting) as spool:
        for _ in range(100):
            await append(spool, record(text=os.urandom(480_000).hex().encode()))
        await until(lambda: file.stat().st_size > 40 << 20)
        full = file.stat().st_size
        await take_all(spool)
        await until(lambda: file.stat().st_size < full - (3 << 20))
    assert max(steps) <= 1 << 20, "an append would wait too long behind a larger step"


async def test_a_disk_that_the_queue_itself_has_filled_to_the_floor_is_used_again_once_it_drained(disk: SpoolOnDisk):
    # Between floor and disk lies less than is usually kept for the next burst.
    async with disk.open(disk_bytes=24 << 20, disk_free_bytes_min=16 << 20) as spool:
        with contextlib.suppress(QueueFull):
            for _ in range(1000):
                await append(spool, record(text=os.urandom(60_000)))
        assert "disk_free_bytes_min" in (spool.not_ready() or "")
        await take_all(spool)
        await until(lambda: spool.not_ready() is None)
        await append(spool, record())


async def test_a_disk_without_room_is_told_as_such_until_it_has_some(disk: SpoolOnDisk):
    full: list[bool] = []

    class Full(Store):
        def commit(self, changes: Changes) -> None:
            self.prove()
            super().commit(changes)

        def prove(self) -> None:
            if full:
                raise StoreFull("database or disk is full")

    async with disk.open(make_store=Full) as spool:
        full.append(True)
        with pytest.raises(QueueFull, match="disk is full"):
            await append(spool, record())
        for _ in range(30):
            await asyncio.sleep(0.05)
            assert "disk is full" in (spool.not_ready() or ""), "not ready while nothing can be stored"
        with pytest.raises(QueueFull, match="disk is full"):
            await append(spool, record())
        full.clear()
        await until(lambda: spool.not_ready() is None)
        await append(spool, record())
