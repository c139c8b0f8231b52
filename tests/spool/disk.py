"""Spools on a real disk for the tests here, and what they are filled with."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

from relay.spool import Record
from relay.spool.folder import Folder, Space, hold
from relay.spool.spool import DiskSpool
from relay.spool.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NOW_MS = 1_795_000_000_000
_numbers = itertools.count()


def event() -> bytes:
    """Give an event that no other is equal to."""
    return b'{"eventName":"e","value":%d}' % next(_numbers)


def record(key: str = "secret-a", *, events: int = 1, **changed: object) -> Record:
    fields = {
        "key": key,
        "envelope": b'"statsigMetadata":{}',
        "headers": b"statsig-sdk-type: py\n",
        "text": b",".join([event() for _ in range(events)]),
        "events": events,
        "accepted_at_ms": NOW_MS,
        "skew_ms": 0,
    }
    return Record(**fields | changed)


class SmallDisk(Folder, frozen=True):
    """A folder on a disk of so many bytes that nobody else writes to."""

    disk_bytes: int

    def space(self) -> Space:
        held = 0
        for file in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                held += file.stat().st_blocks * 512
        return Space(free_bytes=max(0, self.disk_bytes - held), size_bytes=self.disk_bytes)


class SpoolOnDisk:
    """Opens spools on one folder, one after the other, and checks the books of each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commits: list[tuple[float, int]] = []
        self.given_up: list[Exception] = []

    @contextlib.asynccontextmanager
    async def open(
        self,
        *,
        bytes_max: int = 256 * 1024 * 1024,
        disk_bytes: int | None = None,
        make_store: Callable[..., Store] = Store,
        close: bool = True,
        **changed: object,
    ) -> AsyncIterator[DiskSpool]:
        folder = await asyncio.to_thread(hold, self.directory)
        if disk_bytes is not None:
            folder = SmallDisk(folder.path, folder.volatile, folder.lock, disk_bytes)
        store = await asyncio.to_thread(make_store, folder.path, bytes_max=bytes_max)
        settings = {
            "chunk_events_max": 1000,
            "chunk_bytes_max": 512 * 1024,
            "disk_free_bytes_min": 1024,
            "lanes_max": 8,
            "now_ms": lambda: NOW_MS,
            "committed": lambda seconds, events: self.commits.append((seconds, events)),
            "failed": self.given_up.append,
        }
        spool = DiskSpool(folder, store, **settings | changed)
        try:
            await spool.open()
            yield spool
            check_books(spool)
        finally:
            if close:
                await spool.close()
            folder.close()


def check_books(spool: DiskSpool) -> None:
    stats = spool.stats()
    if stats.recovering:
        return
    dead_lettered = sum(stats.dead_lettered_events.values())
    assert stats.recovered_events + stats.enqueued_events == stats.acked_events + dead_lettered + stats.events
    dropped = sum(stats.dropped_events.values())
    assert stats.dead_recovered_events + dead_lettered == stats.dead_replayed_events + dropped + stats.dead_events


async def append(spool: DiskSpool, *records: Record, seconds: float = 5.0) -> None:
    await spool.append(list(records), deadline=asyncio.get_running_loop().time() + seconds)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def take_all(spool: DiskSpool, *, settle: bool = True) -> list[bytes]:
    """Lease, read and settle everything that can be leased; give the raw events in the order they came."""
    texts: list[bytes] = []
    for lane in spool.lanes():
        while refs := spool.lease(lane.lane, events_max=1000, bytes_max=1 << 22):
            texts += [chunk.text() for chunk in await spool.read(refs)]
            if settle:
                spool.ack(refs)
    return texts
