"""A damaged, truncated, removed or replaced file never blocks the queue, and what can be read of it is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from spool.disk import SpoolOnDisk, append, check_books, record, take_all, until

from relay.errors import DiskFailing, SpoolError, StoreFailed, StoreFull
from relay.spool import Verdict, salvage
from relay.spool.store import FILE_NAME, Changes, Store
from relay.spool.table import PAGE_BYTES, ChunkTable

if TYPE_CHECKING:
    from pathlib import Path

    from relay.spool.spool import DiskSpool

CHUNKS = 300


def make_chunks() -> list[bytes]:
    """Chunks of about a page each, so that a lost page loses few."""
    return [b'{"eventName":"%s"}' % os.urandom(750).hex().encode() for _ in range(CHUNKS)]


async def fill(disk: SpoolOnDisk) -> list[bytes]:
    texts = make_chunks()
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record(text=text) for text in texts])
        await append(spool, record("other", events=2), record("other", events=3, dead=Verdict("invalid")))
        await spool.hold_lane(2, paused=True)
    return texts


def damage(file: Path, page: int) -> None:
    """Overwrite a page, counted from 1 as SQLite does."""
    with file.open("r+b") as opened:
        opened.seek((page - 1) * PAGE_BYTES)
        opened.write(os.urandom(PAGE_BYTES))


def pages_of(file: Path, name: str) -> list[int]:
    """Every page of a table or an index; needs a SQLite with dbstat, else is found by the root alone."""
    connection = sqlite3.connect(file)
    try:
        return [row[0] for row in connection.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (name,))]
    except sqlite3.OperationalError:
        return [connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]]
    finally:
        connection.close()


async def settle_all(spool: DiskSpool) -> list[bytes]:
    """Take everything until the queue is empty, as the forwarder does: what cannot be read is tried again."""
    texts: list[bytes] = []
    async with asyncio.timeout(20):
        while spool.stats().recovering or spool.stats().events:
            for lane in spool.lanes():
                refs = spool.lease(lane.lane, events_max=50, bytes_max=1 << 20)
                try:
                    chunks = await spool.read(refs)
                except SpoolError:
                    spool.release(refs)
                    continue
                texts += [chunk.text() for chunk in chunks]
                spool.ack([ref for ref in refs if ref.id in {chunk.id for chunk in chunks}])
            await asyncio.sleep(0.01)
    return texts


def lost(given: list[bytes], arrived: list[bytes]) -> int:
    """How many did not arrive; none may twice, or changed."""
    counts = Counter(arrived)
    assert max(counts.values(), default=1) == 1
    known = [text for text in arrived if text in set(given)]
    assert len(known) == len([text for text in arrived if text.startswith(b'{"eventName":"') and len(text) > 1000])
    return len(given) - len(known)


@pytest.mark.parametrize("name", ["queue_default", "chunks", "lanes", "dead_letters", "sqlite_sequence", "meta"])
async def test_a_damaged_page_of_any_kind_costs_at_most_what_lay_in_it(disk: SpoolOnDisk, name: str):
    given = await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    pages = pages_of(file, name)
    assert pages
    damage(file, pages[len(pages) // 2])
    async with disk.open() as spool:
        arrived = await settle_all(spool)
        assert lost(given, arrived) <= (30 if name == "queue_default" else 0)
        stats = spool.stats()
        if name == "queue_default":
            assert stats.dead_lettered_events["corrupt"] == lost(given, arrived)
        check_books(spool)
        await append(spool, record())


async def test_the_rest_is_delivered_when_every_tenth_page_is_damaged(disk: SpoolOnDisk):
    given = await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    pages = file.stat().st_size // PAGE_BYTES
    for page in range(20, pages, 10):
        damage(file, page)
    async with disk.open() as spool:
        arrived = await settle_all(spool)
        check_books(spool)
        assert lost(given, arrived) < CHUNKS // 3
        assert len(list(file.parent.glob(salvage.ASIDE_NAME + "*"))) >= 1


async def test_a_lost_first_page_loses_nothing(disk: SpoolOnDisk):
    given = await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    damage(file, 1)
    async with disk.open() as spool:
        arrived = await settle_all(spool)
        assert lost(given, arrived) == 0
        assert [lane.paused for lane in spool.all_lanes() if lane.key == "other"] == [True]
        assert spool.stats().dead_recovered_events == 3
    (aside,) = file.parent.glob(salvage.ASIDE_NAME + "*")
    assert aside.stat().st_size > CHUNKS * 1000, "what was there is kept"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
async def test_a_truncated_file_is_salvaged_as_far_as_it_goes(disk: SpoolOnDisk, share: float):
    given = await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    os.truncate(file, int(file.stat().st_size * share))
    async with disk.open() as spool:
        arrived = await settle_all(spool)
        assert lost(given, arrived) <= CHUNKS * (1 - share) + 30
        check_books(spool)
        await append(spool, record())


async def test_random_bytes_in_place_of_the_file_do_not_block_a_start_and_are_kept(disk: SpoolOnDisk):
    file = disk.directory / "spool" / FILE_NAME
    file.parent.mkdir()
    noise = os.urandom(100_000)
    file.write_bytes(noise)
    async with disk.open() as spool:
        await append(spool, record())
    (aside,) = file.parent.glob(salvage.ASIDE_NAME + "*")
    assert aside.read_bytes() == noise


@pytest.mark.parametrize("at", [10, 5000, 100_000])
async def test_a_damaged_log_never_blocks_a_start(disk: SpoolOnDisk, at: int):
    async with disk.open(close=False) as spool:
        for _ in range(100):
            await append(spool, record(text=os.urandom(3000)))
        before = disk.directory / "copy" / "spool"
        await asyncio.to_thread(shutil.copytree, disk.directory / "spool", before)
        await spool.close()
    log = before / (FILE_NAME + "-wal")
    with log.open("r+b") as opened:
        opened.seek(at)
        opened.write(os.urandom(100))
    async with SpoolOnDisk(before.parent).open() as spool:
        await settle_all(spool)
        await append(spool, record())


async def test_damage_found_while_running_is_salvaged_without_a_restart(disk: SpoolOnDisk):
    given = make_chunks()
    file = disk.directory / "spool" / FILE_NAME
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record(text=text) for text in given])
    pages = pages_of(file, "queue_default")
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        await asyncio.to_thread(damage, file, pages[0])  # the root: no row can be found any more
        arrived = await settle_all(spool)
        check_books(spool)
        assert len(arrived) + spool.stats().dead_lettered_events.get("corrupt", 0) == CHUNKS
        assert not disk.given_up
        await append(spool, record())
    assert list(file.parent.glob(salvage.ASIDE_NAME + "*"))


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_removed_or_replaced_underneath_is_noticed_and_nothing_is_lost(
    disk: SpoolOnDisk, *, replaced: bool
):
    given, later = make_chunks(), record()
    file = disk.directory / "spool" / FILE_NAME
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record(text=text) for text in given])

        def tamper() -> None:
            file.unlink()
            if replaced:
                file.write_bytes(b"somebody else's")

        await asyncio.to_thread(tamper)
        inode = await asyncio.to_thread(lambda: file.exists() and file.stat().st_ino)
        async with asyncio.timeout(10):
            while not (file.exists() and file.stat().st_ino != inode):
                await asyncio.sleep(0.05)
        await until(lambda: spool.not_ready() is None)
        await append(spool, later)
    async with disk.open() as spool:
        arrived = await settle_all(spool)
        assert lost(given, arrived) == 0
        assert later.text in arrived


async def test_a_lane_whose_key_is_lost_is_held_until_it_gets_another(disk: SpoolOnDisk):
    given = await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    damage(file, pages_of(file, "lanes")[0])
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        (first, *_) = spool.all_lanes()
        assert first.paused
        await spool.rekey(first.lane, "secret-a")
        assert lost(given, await settle_all(spool)) == 0


@pytest.mark.parametrize("index_entries_max", [1_000_000, 10], ids=["in memory", "beyond the window"])
async def test_chunks_of_a_lane_that_the_file_does_not_know_are_held_until_it_gets_a_key(
    disk: SpoolOnDisk, index_entries_max: int
):
    """So it is where the database was removed and its log was left, from which SQLite then makes a new one."""
    given = await fill(disk)
    with sqlite3.connect(disk.directory / "spool" / FILE_NAME) as connection:
        connection.execute("DELETE FROM lanes")
    connection.close()
    async with disk.open(index_entries_max=index_entries_max) as spool:
        woken: list[int] = []
        spool.subscribe(woken.append)
        await until(lambda: not spool.stats().recovering)
        await append(spool, record("secret-a"))
        assert not {1, 2} & set(woken), "events must not travel under a key that is none"
        assert [lane.paused for lane in spool.all_lanes()] == [True, True, False]
        await spool.rekey(1, "secret-a")
        await spool.hold_lane(1, paused=False)
        assert 1 in woken
    async with disk.open() as spool:
        (first, *_) = spool.all_lanes()
        assert (first.key, first.paused) == ("secret-a", False), "the new key is remembered"
        assert lost(given, await settle_all(spool)) == 0


async def test_without_room_for_a_second_file_the_queue_starts_empty_and_the_old_one_is_kept(disk: SpoolOnDisk):
    await fill(disk)
    file = disk.directory / "spool" / FILE_NAME
    damage(file, 1)
    size = file.stat().st_size

    class FullDisk(ChunkTable):
        def add_schema(self) -> None:
            super().add_schema()
            if self.db_file_name == salvage.FILLING_NAME and not FullDisk.failed:
                FullDisk.failed = True
                raise StoreFull("no room")

        failed = False

    def store(path: Path, *, bytes_max: int) -> Store:
        return Store(path, bytes_max=bytes_max, open_table=FullDisk)

    async with disk.open(make_store=store) as spool:
        assert spool.stats().events == 0
        await append(spool, record())
    (aside,) = file.parent.glob(salvage.ASIDE_NAME + "*")
    assert aside.stat().st_size == size


@pytest.mark.parametrize("step", range(5))
async def test_a_crash_at_any_step_of_a_salvage_loses_nothing(disk: SpoolOnDisk, step: int):
    """Each rename is a step; what lies in the folder after it is what the next start finds, a log of old among it."""
    given, folder = make_chunks(), disk.directory / "killed" / "spool"
    async with disk.open(chunk_events_max=1) as spool:  # delivered ones in between: the new file is laid out otherwise
        await append(spool, *[record(text=text) for text in make_chunks()])
        await settle_all(spool)
        await append(spool, *[record(text=text) for text in given[20:]])
    async with disk.open(chunk_events_max=1) as spool:
        await append(spool, *[record(text=text) for text in given[:20]])
        await asyncio.to_thread(shutil.copytree, disk.directory / "spool", folder)
    assert (folder / (FILE_NAME + "-wal")).stat().st_size > 20 * 1000
    copies: list[Path] = []

    class Spying(type(folder)):
        def rename(self, target: object) -> object:
            done = super().rename(target)
            copies.append(disk.directory / f"crash-{len(copies)}")
            shutil.copytree(folder, copies[-1] / "spool")
            return done

    await asyncio.to_thread(salvage.mend, Spying(folder))
    assert len(copies) == 5, "each step is tried here"
    async with SpoolOnDisk(copies[step]).open() as spool:
        assert lost(given, await settle_all(spool)) == 0


async def test_a_request_during_a_salvage_is_told_to_come_again(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await append(spool, record())
        spool._failing = DiskFailing("the file is being salvaged")  # what a damaged read sets
        with pytest.raises(DiskFailing, match="until it recovers"):
            await append(spool, record())
        await until(lambda: spool.not_ready() is None)


async def test_a_salvaged_file_that_cannot_be_opened_at_once_is_opened_later_and_not_salvaged_again(disk: SpoolOnDisk):
    given = make_chunks()
    refusals: list[str] = []

    class Stubborn(ChunkTable):
        def add_schema(self) -> None:
            if self.db_file_name == FILE_NAME and refusals:
                raise sqlite3.OperationalError(refusals.pop())
            super().add_schema()

    def store(path: Path, *, bytes_max: int) -> Store:
        return Store(path, bytes_max=bytes_max, open_table=Stubborn)

    async with disk.open(make_store=store, chunk_events_max=1) as spool:
        await append(spool, *[record(text=text) for text in given])
        refusals += ["disk I/O error"] * 2
        (disk.directory / "spool" / FILE_NAME).unlink()
        await until(lambda: not refusals and spool.not_ready() is None)
        await append(spool, record())
    async with disk.open() as spool:
        assert lost(given, await settle_all(spool)) == 0


async def test_a_commit_that_fails_of_a_file_that_was_moved_is_salvaged_all_the_same(disk: SpoolOnDisk):
    given = record()
    failing = [False]

    class Failing(Store):
        def commit(self, changes: Changes) -> None:
            if failing.pop():
                raise StoreFailed("disk I/O error")
            failing.append(False)
            super().commit(changes)

    async with disk.open(make_store=Failing) as spool:
        await append(spool, given)
        for file in (disk.directory / "spool").glob(FILE_NAME + "*"):
            file.unlink()
        failing[:] = [False, True]
        with contextlib.suppress(DiskFailing):
            await append(spool, record())
        await until(lambda: spool.not_ready() is None)
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert given.text in await take_all(spool)


async def test_files_that_go_while_the_queue_is_opened_anew_end_neither_the_writer_nor_a_start(disk: SpoolOnDisk):
    """As those do that were set aside, once somebody cleans up: here it is a name that leads nowhere."""
    folder = disk.directory / "spool"
    folder.mkdir()
    (folder / f"{salvage.ASIDE_NAME}gone").symlink_to("nowhere")
    async with disk.open() as spool:
        (folder / FILE_NAME).unlink()
        await until(lambda: (folder / FILE_NAME).exists() and spool.not_ready() is None)
        await append(spool, record())
        assert spool.writer_alive()


async def test_a_folder_that_cannot_be_looked_at_is_a_failing_disk_until_it_can(disk: SpoolOnDisk):
    folder = disk.directory / "spool"
    async with disk.open() as spool:
        await asyncio.to_thread(folder.rename, folder.with_name("away"))
        folder.touch()  # what lies below is no folder: every look is an error of the system
        await until(lambda: spool.not_ready() is not None)
        assert spool.writer_alive()
        folder.unlink()
        await asyncio.to_thread(folder.with_name("away").rename, folder)
        await until(lambda: spool.not_ready() is None)
        await append(spool, record())


@pytest.mark.parametrize("companion", ["-wal", "-shm"])
async def test_a_log_removed_underneath_is_noticed_and_nothing_is_lost(disk: SpoolOnDisk, companion: str):
    given = [record(), record()]
    async with disk.open() as spool:
        await append(spool, given[0])
        (disk.directory / "spool" / f"{FILE_NAME}{companion}").unlink()
        await until(lambda: list((disk.directory / "spool").glob("*.damaged-*")) != [] and spool.not_ready() is None)
        await append(spool, given[1])
        assert await take_all(spool, settle=False) == [one.text for one in given]
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert await take_all(spool) == [one.text for one in given]
