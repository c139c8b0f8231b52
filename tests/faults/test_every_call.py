"""Fail the first call to the disk, then the second, and so on until none fails: whatever was promised is kept.

The scenario does everything a spool can do. Each run has a folder of its own and they run at once, for most of their
time is the writer's rest between two tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from daemon.harness import Audit
from faults.rig import Row
from spool.disk import SpoolOnDisk, append, record, take_all, until

from relay.errors import NotNow, SpoolError, StoreFailed, StoreFull
from relay.spool import Verdict
from relay.spool.letters import Choice
from relay.spool.store import Store
from relay.wire.events import split_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from relay.spool import Chunk, Record, Ref
    from relay.spool.spool import DiskSpool

SEAM = (
    *("commit", "prove", "reopen", "look", "usage", "give_back", "checkpoint", "last_id", "lanes", "entries"),
    *("totals", "dead_totals", "dead_letters", "read"),
)
CALLS_MAX = 30


class Switch:
    """Counts one run's calls of a method and fails the one that was wished for."""

    def __init__(self, name: str, nth: int, error: Exception, *, after: bool) -> None:
        self.name, self.error, self.after = name, error, after
        self.met = False
        self.armed = False
        """The spool is open: a call that fails before is a start that fails, and that ends the process."""
        self._left = nth
        self._lock = threading.Lock()

    def is_due(self, name: str) -> bool:
        if name != self.name or not self.armed:
            return False
        with self._lock:
            self._left -= 1
            self.met = self.met or self._left == 0
            return self._left == 0


def failing_store(switch: Switch) -> type[Store]:
    """Make a store of which one call fails, before or after it was done."""

    def wrap(name: str) -> Callable[..., Any]:
        def call(self: Store, *words: Any, **named: Any) -> Any:
            due = switch.is_due(name)
            if due and not switch.after:
                raise switch.error
            done = getattr(Store, name)(self, *words, **named)
            switch.armed = switch.armed or name == "usage"  # the last one of an opening
            if due:
                raise switch.error
            return done

        return call

    return type("FailingStore", (Store,), {name: wrap(name) for name in SEAM})


class Promises:
    """What the spool has said of each event."""

    def __init__(self) -> None:
        self.stored: set[bytes] = set()
        self.settled: set[bytes] = set()

    def owed(self) -> set[bytes]:
        return self.stored - self.settled


async def play(spool: DiskSpool, promises: Promises) -> None:
    """Append, deliver, bury, replace, replay, purge; go on after whatever is refused."""
    for _ in range(4):
        await keep(spool, promises, [record(events=2)])
    await keep(spool, promises, [record(key="secret-b", events=3)])
    await until(lambda: not spool.stats().recovering)
    for lane in spool.lanes():
        leased = spool.lease(lane.lane, events_max=100, bytes_max=1 << 20)
        with contextlib.suppress(SpoolError):
            await settle(spool, promises, leased, await spool.read(leased))
    await keep(spool, promises, [record(events=2)])
    with contextlib.suppress(SpoolError):
        await spool.replay(Choice())
    await keep(spool, promises, [record(events=2)])


async def keep(spool: DiskSpool, promises: Promises, records: list[Record]) -> None:
    for _ in range(8):
        with contextlib.suppress(NotNow):
            await append(spool, *records)
            promises.stored |= {raw for one in records for raw in split_events(one.text)}
            return
        await asyncio.sleep(0.25)
    raise AssertionError("the spool does not recover")


async def settle(spool: DiskSpool, promises: Promises, leased: list[Ref], chunks: list[Chunk]) -> None:
    """Deliver the first chunk, bury the second, replace the third by its parts; give back the rest."""
    texts = {chunk.id: chunk.text() for chunk in chunks}
    rest = list(leased)
    with contextlib.suppress(SpoolError):
        for number, ref in enumerate(leased):
            if ref.id not in texts:
                rest.remove(ref)  # it was found corrupt, and set aside
            elif number == 0:
                promises.settled |= set(split_events(texts[ref.id]))
                spool.ack([ref])
                rest.remove(ref)
            elif number == 1:
                await spool.bury([ref], Verdict(reason="rejected"))
                rest.remove(ref)
            elif number == 2:
                halves = [record(text=raw) for raw in split_events(texts[ref.id])]
                parts = await spool.replace(ref, halves)
                rest.remove(ref)
                rest += parts
    spool.release(rest)


async def run(folder: Path, switch: Switch) -> tuple[set[bytes], set[bytes]]:
    """Play with the failing call, then open the folder with a sound store; gives what is owed and what is found."""
    promises = Promises()
    async with SpoolOnDisk(folder).open() as spool:
        for _ in range(3):
            await keep(spool, promises, [record(events=2)])
    with contextlib.suppress(SpoolError):
        async with SpoolOnDisk(folder).open(make_store=failing_store(switch)) as spool:
            await play(spool, promises)
    async with SpoolOnDisk(folder).open() as spool:
        await until(lambda: not spool.stats().recovering)
        await spool.replay(Choice())
        found = {raw for text in await take_all(spool) for raw in split_events(text)}
    return promises.owed(), found


KINDS = {
    "fails": (lambda: StoreFailed("disk I/O error"), False),
    "fails after the fact": (lambda: StoreFailed("fsync: disk I/O error"), True),
    "finds no room": (lambda: StoreFull("database or disk is full"), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_whichever_call_to_the_disk_fails_nothing_promised_is_lost_and_the_books_balance(
    tmp_path: Path, kind: str, tell: Callable[[Row], None]
) -> None:
    make_error, after = KINDS[kind]
    promised: set[bytes] = set()
    arrived: set[bytes] = set()

    async def fail_each(name: str) -> int:
        for nth in range(1, CALLS_MAX):
            switch = Switch(name, nth, make_error(), after=after)
            owed, found = await run(tmp_path / f"{name}-{nth}", switch)
            assert owed <= found, f"{name}, call {nth}: {len(owed - found)} of {len(owed)} are gone"
            promised.update(owed)
            arrived.update(found)
            if not switch.met:
                return nth - 1
        return CALLS_MAX

    failed = dict(zip(SEAM, await asyncio.gather(*map(fail_each, SEAM)), strict=True))
    never = {name for name, calls in failed.items() if not calls}
    assert never <= {"prove", "reopen", "look", "give_back", "checkpoint", "last_id", "lanes", "dead_totals", "totals"}
    audit = Audit.of(promised, arrived)
    tell(Row(f"each call to the disk in turn {kind}", sum(failed.values()), audit, 0.0))
