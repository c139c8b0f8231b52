"""A spool in memory that keeps the promises of `relay.spool.Spool`, and counts what it is asked to do.

Its rows are real rows (`record.encode`), so that what is read back went through the checks of the disk format. What a
commit would make durable becomes so at the next turn of the loop; `crash` forgets leases and whatever was not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from relay.errors import ChunkCorrupt, SpoolError
from relay.spool import Chunk, LaneStats, Record, Ref, Stats, Verdict
from relay.spool.record import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.errors import NotNow


@dataclass
class Row:
    ref: Ref
    data: bytes
    dead: Verdict | None = None
    leased: bool = False
    acked: bool = False  # settled, not yet committed


@dataclass
class Counts:
    recovered: int = 0
    enqueued: int = 0
    acked: int = 0
    dead_recovered: int = 0
    dead_lettered: Counter[str] = field(default_factory=Counter)


class FakeSpool:
    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.keys: dict[str, int] = {}
        self.paused: set[int] = set()
        """Lanes that are held, whether the forwarder was told or not."""
        self.counts = Counts()
        self.fail: Callable[[str], SpoolError | None] = lambda _verb: None
        """Called with each verb that touches the disk; what it gives is raised."""
        self._last_id = 0
        self._wakers: list[Callable[[int], None]] = []

    # the face

    async def append(self, records: Sequence[Record], *, deadline: float) -> None:
        assert deadline > asyncio.get_running_loop().time(), "the deadline has passed"
        await self._disk("append")
        self._append(records)

    def submit(self, records: Sequence[Record], *, deadline: float, done: Callable[[NotNow | None], None]) -> None:
        assert deadline > asyncio.get_running_loop().time(), "the deadline has passed"

        def commit() -> None:
            self._append(records)
            done(None)

        asyncio.get_running_loop().call_soon(commit)

    def _append(self, records: Sequence[Record]) -> None:
        woken = []
        for record in records:
            row = self._insert(record)
            self.counts.enqueued += record.events
            if row.dead is not None:
                self.counts.dead_lettered[row.dead.reason] += record.events
            else:
                woken.append(row.ref.lane)
        for lane in dict.fromkeys(woken):
            self._tell(lane)

    def subscribe(self, wake: Callable[[int], None]) -> None:
        self._wakers.append(wake)

    def bound_share_of(self, is_held_back: Callable[[int], bool]) -> None:
        self.is_held_back = is_held_back

    def key_of(self, lane: int) -> str:
        return next(key for key, number in self.keys.items() if number == lane)

    def lease(self, lane: int, *, events_max: int, bytes_max: int) -> list[Ref]:
        taken: list[Ref] = []
        for row in self.free(lane):
            if taken and (row.ref.events > events_max or row.ref.bytes > bytes_max):
                break
            row.leased = True
            taken.append(row.ref)
            events_max -= row.ref.events
            bytes_max -= row.ref.bytes
        return taken

    async def read(self, refs: Sequence[Ref]) -> list[Chunk]:
        await self._disk("read")
        chunks = []
        for ref in refs:
            row = self._leased(ref)
            try:
                chunks.append(decode(ref.id, ref.lane, row.data))
            except ChunkCorrupt as exc:
                self._bury(row, Verdict("corrupt", str(exc)))
        return chunks

    def ack(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            self._leased(ref).acked = True
        asyncio.get_running_loop().call_soon(self.commit)

    def release(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            self._leased(ref).leased = False
        for lane in {ref.lane for ref in refs}:
            self._tell(lane)

    async def bury(self, refs: Sequence[Ref], verdict: Verdict) -> None:
        await self._disk("bury")
        for ref in refs:
            self._bury(self._leased(ref), verdict)

    async def replace(self, ref: Ref, parts: Sequence[Record]) -> list[Ref]:
        await self._disk("replace")
        self._leased(ref)
        assert sum(part.events for part in parts) == ref.events, "a replacement holds the same events"
        del self.rows[ref.id]
        rows = [self._insert(part) for part in parts]
        for row in rows:
            row.leased = True
        return [row.ref for row in rows]

    def lanes(self) -> list[LaneStats]:
        stats = []
        for key, lane in self.keys.items():
            refs = [row.ref for row in self.queued() if row.ref.lane == lane]
            if refs:
                held = sum(row.ref.events for row in self.queued() if row.ref.lane == lane and row.leased)
                oldest = min(ref.accepted_at_ms for ref in refs)
                events, size = sum(ref.events for ref in refs), sum(ref.bytes for ref in refs)
                stats.append(LaneStats(lane, key, events, size, held, oldest, lane in self.paused))
        return stats

    def stats(self) -> Stats:
        queued = self.queued()
        return Stats(
            refusal="",
            recovering=False,
            events=sum(row.ref.events for row in queued),
            bytes=sum(len(row.data) for row in self.rows.values()),
            capacity_bytes=1 << 30,
            in_flight_events=sum(row.ref.events for row in queued if row.leased),
            recovered_events=self.counts.recovered,
            enqueued_events=self.counts.enqueued,
            acked_events=self.counts.acked,
            dead_events=sum(row.ref.events for row in self.dead()),
            dead_recovered_events=self.counts.dead_recovered,
            dead_lettered_events=dict(self.counts.dead_lettered),
            dead_replayed_events=0,
            dropped_events={},
            disk_free_bytes=1 << 40,
            disk_size_bytes=1 << 40,
            volatile=False,
        )

    # for tests

    def queued(self) -> list[Row]:
        return [row for row in self.rows.values() if row.dead is None and not row.acked]

    def dead(self) -> list[Row]:
        return [row for row in self.rows.values() if row.dead is not None]

    def free(self, lane: int) -> list[Row]:
        rows = [row for row in self.queued() if row.ref.lane == lane and not row.leased]
        return sorted(rows, key=lambda row: row.ref.id)

    def leased(self) -> list[Row]:
        return [row for row in self.queued() if row.leased]

    def texts(self, rows: Sequence[Row]) -> list[bytes]:
        """What can be read of these."""
        texts = []
        for row in rows:
            with contextlib.suppress(ChunkCorrupt):
                texts.append(decode(row.ref.id, row.ref.lane, row.data).text())
        return texts

    def corrupt(self, chunk: int) -> None:
        row = self.rows[chunk]
        row.data = row.data[:-1] + bytes([row.data[-1] ^ 1])

    def drift(self) -> int:
        stats = self.stats()
        dead_lettered = sum(stats.dead_lettered_events.values())
        queued = stats.recovered_events + stats.enqueued_events - stats.acked_events - dead_lettered
        return abs(queued - stats.events) + abs(stats.dead_recovered_events + dead_lettered - stats.dead_events)

    def commit(self) -> None:
        for chunk in [chunk for chunk, row in self.rows.items() if row.acked]:
            self.counts.acked += self.rows.pop(chunk).ref.events

    def crash(self) -> FakeSpool:
        """What the next process finds: leases are gone, and so are acks that no commit has taken."""
        after = FakeSpool()
        after.keys, after._last_id = dict(self.keys), self._last_id
        after.rows = {chunk: replace(row, leased=False, acked=False) for chunk, row in self.rows.items()}
        after.counts.recovered = sum(row.ref.events for row in after.queued())
        after.counts.dead_recovered = sum(row.ref.events for row in after.dead())
        return after

    # inside

    async def _disk(self, verb: str) -> None:
        await asyncio.sleep(0)
        if (error := self.fail(verb)) is not None:
            raise error

    def _insert(self, record: Record) -> Row:
        self._last_id += 1
        lane = self.keys.setdefault(record.key, len(self.keys) + 1)
        data = encode(record)
        ref = Ref(self._last_id, lane, record.events, len(data), record.accepted_at_ms)
        row = self.rows[ref.id] = Row(ref, data, record.dead)
        return row

    def _bury(self, row: Row, verdict: Verdict) -> None:
        row.dead, row.leased = verdict, False
        self.counts.dead_lettered[verdict.reason] += row.ref.events

    def _leased(self, ref: Ref) -> Row:
        row = self.rows[ref.id]
        assert row.leased, f"chunk {ref.id} is not leased"
        assert not row.acked, f"chunk {ref.id} was acked already"
        assert row.dead is None, f"chunk {ref.id} is a dead letter"
        return row

    def _tell(self, lane: int) -> None:
        for wake in self._wakers if lane not in self.paused else ():
            wake(lane)
