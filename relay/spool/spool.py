"""The disk spool's async face: admits, waits for the fsync, hands out lanes, and keeps the books.

Everything here runs on the event loop. The writer thread commits and reports once per transaction; one reader thread
fetches bodies and, after a start, the index of what an earlier life left, in pages, behind the open door.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from relay.errors import (
    ChunkCorrupt,
    DiskFailing,
    NotNow,
    QueueFull,
    SpoolError,
    StoreDamaged,
    StoreFailed,
    StoreFull,
)
from relay.spool import Chunk, LaneStats, Record, Ref, Stats, Verdict
from relay.spool.books import Books
from relay.spool.graveyard import Graveyard, Tally
from relay.spool.index import Lane, Lanes
from relay.spool.mirror import Mirror
from relay.spool.paging import Pager
from relay.spool.recent import Recent
from relay.spool.record import decode
from relay.spool.room import Room
from relay.spool.waiting import Waiting
from relay.spool.writer import Append, Done, Failed, Heard, Job, Outcome, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.spool.folder import Folder
    from relay.spool.letters import Choice, DeadLetter
    from relay.spool.store import Store

T = TypeVar("T")

_log = structlog.get_logger()

INDEX_ENTRIES_MAX: Final = 1_000_000
"""Free chunks whose entries are held in memory, 28 MB; the rest stay on disk until these are delivered."""
RECENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Rows kept in memory after their commit, so that prompt delivery reads no disk."""
FAILURES_MAX: Final = 20
"""Failed commits in a row after which the process ends, so that its supervisor decides."""


class DiskSpool:
    """The Spool that the daemon runs on. Open a Store in a thread first; `close` commits what waits and closes it."""

    def __init__(
        self,
        folder: Folder,
        store: Store,
        *,
        chunk_events_max: int,
        chunk_bytes_max: int,
        disk_free_bytes_min: int,
        lanes_max: int,
        lane_bytes_share_max: float = 1.0,
        dead_letter_bytes_max: int = 1 << 62,
        index_entries_max: int = INDEX_ENTRIES_MAX,
        failures_max: int = FAILURES_MAX,
        now_ms: Callable[[], int],
        committed: Callable[[float, int], None],
        failed: Callable[[SpoolError], None],
    ) -> None:
        """`committed` hears seconds and events of every commit, `failed` that commits keep failing for good."""
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        self._store = store
        self._room = Room(
            capacity_bytes=store.capacity_bytes,
            disk_free_bytes_min=disk_free_bytes_min,
            lane_bytes_share_max=lane_bytes_share_max,
        )
        self._lanes_max = lanes_max
        self._is_held_back: Callable[[int], bool] = lambda _: False
        self._failures_max = failures_max
        self._now_ms = now_ms
        self._committed = committed
        self._gave_up = failed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")
        self._chunk_events_max = chunk_events_max
        self._chunk_bytes_max = chunk_bytes_max
        self._lanes = Lanes()
        self._books = Books()
        self._pager = Pager(
            self._lanes,
            self._books,
            entries_max=index_entries_max,
            entries=lambda *span: self._read_disk(lambda: self._store.entries(*span)),
            totals=lambda *span: self._read_disk(lambda: self._store.totals(*span)),
            tell=self._tell,
            gave_up=self._give_up,
        )
        self._recent = Recent(RECENT_BYTES_MAX)
        self._mirror = Mirror(self._lanes, self._books, self._recent, self._pager, tell=self._tell)
        self._wakers: list[Callable[[int], None]] = []
        self._failures = 0
        self._failing: SpoolError | None = None
        self._closed = False
        self._graveyard = Graveyard(
            select=self._select_letters,
            last_id=lambda: self._pager.last_id,
            revive=lambda letters: self._run(revived=letters),
            drop=lambda letters, reason: self._run(dropped=letters, drop_reason=reason),
            held_bytes=lambda: self._books.dead_bytes,
            bytes_max=dead_letter_bytes_max,
        )

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Be ready to append; the index of an earlier life goes on loading behind it."""
        try:
            await self._in_reader(self._survey)
        except StoreDamaged:
            await self._in_reader(self._store.reopen)
            await self._in_reader(self._survey)
        self._writer = Writer(
            self._store,
            last_id=self._pager.last_id,
            chunk_events_max=self._chunk_events_max,
            chunk_bytes_max=self._chunk_bytes_max,
            report=self._report,
            space=self._folder.space,
            now_ms=self._now_ms,
            disk_free_bytes_min=self._room.disk_free_bytes_min,
        )
        self._waiting = Waiting(self._loop, withdraw=self._writer.withdraw, left=self._left)
        self._writer.start()
        self._pager.page_in()
        self._graveyard.keep_within_bound()

    def _survey(self) -> None:
        """Learn what an earlier life left, all but the index; in the reader thread."""
        last_id, lanes, dead = self._store.last_id(), self._store.lanes(), self._store.dead_totals()
        self._room.used_bytes, self._room.space = self._store.usage().used_bytes, self._folder.space()
        self._pager.start(last_id)
        self._lanes.restore(lanes)
        for held in dead:
            lane = self._pager.lane_of(held.lane)
            self._books.recover_dead(lane, chunks=held.chunks, events=held.events, size=held.bytes)

    async def recovered(self) -> None:
        """Wait until what an earlier life left is counted."""
        await self._pager.wait()

    async def close(self) -> None:
        """Commit what waits, answer who waits, close the file; the folder stays the opener's. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._graveyard.close()
        await self._pager.close()
        await asyncio.to_thread(self._writer.stop)
        await asyncio.sleep(0)  # let the last report in
        self._waiting.answer_all(DiskFailing("the relay stopped before these events were on disk; send them again"))
        await asyncio.to_thread(self._reader.shutdown)
        await asyncio.to_thread(self._store.close)

    def writer_alive(self) -> bool:
        """Whether the thread exists that commits; a slow disk does not matter."""
        return self._writer.is_alive()

    def not_ready(self) -> str | None:
        """Why nothing can be made durable now, None where it can."""
        if self._closed:
            return "stopping"
        if self._failing is not None:
            return str(self._failing)
        try:
            self._room.check_usual()
        except QueueFull as exc:
            return str(exc)
        return None

    # -- in -----------------------------------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, deadline: float) -> None:
        """Promised in Spool. All records of one call have the same key."""
        stored: asyncio.Future[None] = self._loop.create_future()

        def heard(refusal: NotNow | None) -> None:
            if stored.done():
                return  # the caller went away; the events stay
            if refusal is None:
                stored.set_result(None)
            else:
                stored.set_exception(refusal)

        self.submit(records, deadline=deadline, done=heard)
        await stored

    def submit(self, records: Sequence[Record], *, deadline: float, done: Heard) -> None:
        """Promised in Spool. All records of one call have the same key."""
        lane = self._admit(records)
        append = Append(lane.number, records, done, deadline)
        self._room.check(append.bytes)
        if len(self._lanes) > 1 and self._room.is_over_share(lane, append.bytes) and self._is_held_back(lane.number):
            raise self._room.refuse_share(lane)
        self._room.pending_bytes += append.bytes
        lane.pending_events += append.events
        self._waiting.add(append)
        self._writer.append(append)

    def _admit(self, records: Sequence[Record]) -> Lane:
        if self._closed:
            raise DiskFailing("the relay is stopping; send the request again")
        if self._failing is not None:
            kind = QueueFull if isinstance(self._failing, StoreFull) else DiskFailing
            raise kind(f"the queue's disk fails ({self._failing}); events are not accepted until it recovers")
        key = records[0].key
        assert len(records) == 1 or all(record.key == key for record in records), "one append, one key"
        lane = self._lanes.of_key(key)
        return lane if lane is not None else self._open_lane(key)

    def _open_lane(self, key: str) -> Lane:
        if len(self._lanes) >= self._lanes_max:
            # Until the index of an earlier life is counted, a lane that seems empty may hold a backlog.
            idle = None if self._pager.recovering else self._lanes.find_idle()
            if idle is None:
                raise QueueFull(
                    f"{self._lanes_max} keys have events queued (queue.lanes_max); a further key has to wait until one "
                    "of them is delivered"
                )
            self._lanes.forget(idle)
            self._writer.run(Job(self._loop.create_future(), forgotten_lanes=[idle.number]))
        lane = self._lanes.open(key)
        self._writer.open_lane(lane.number, key)
        return lane

    # -- out ----------------------------------------------------------------------------------------------------------

    def subscribe(self, wake: Callable[[int], None]) -> None:
        """Promised in Spool."""
        self._wakers.append(wake)
        for lane in self._lanes:
            if len(lane) and not lane.paused:
                wake(lane.number)

    def bound_share_of(self, is_held_back: Callable[[int], bool]) -> None:
        """Promised in Spool."""
        self._is_held_back = is_held_back

    def key_of(self, lane: int) -> str:
        """Promised in Spool."""
        return self._lanes[lane].key

    def lease(self, lane: int, *, events_max: int, bytes_max: int) -> list[Ref]:
        """Promised in Spool."""
        taken = self._lanes[lane].lease(events_max, bytes_max)
        self._pager.leased(len(taken), dry=not len(self._lanes[lane]))
        return taken

    async def read(self, refs: Sequence[Ref]) -> list[Chunk]:
        """Promised in Spool."""
        rows = {ref.id: self._recent[ref.id] for ref in refs if ref.id in self._recent}
        absent = [ref.id for ref in refs if ref.id not in rows]
        if absent:
            rows |= await self._read_disk(lambda: self._store.read(absent))
        chunks: list[Chunk] = []
        for ref in refs:
            if ref.id not in rows:
                self._lose(ref)
                continue
            try:
                chunks.append(decode(ref.id, *rows[ref.id]))
            except ChunkCorrupt as exc:
                await self.bury([ref], Verdict(reason="corrupt", detail=str(exc)))
        return chunks

    def ack(self, refs: Sequence[Ref]) -> None:
        """Promised in Spool."""
        for ref in refs:
            self._recent.forget(ref.id)
        self._writer.ack(refs)

    def release(self, refs: Sequence[Ref]) -> None:
        """Promised in Spool."""
        for ref in refs:
            self._lanes[ref.lane].release(ref)
        self._pager.released(len(refs))
        for lane in {ref.lane for ref in refs}:
            self._tell(lane)

    async def bury(self, refs: Sequence[Ref], verdict: Verdict) -> None:
        """Promised in Spool."""
        await self._run(graves=[(ref, verdict) for ref in refs])

    async def replace(self, ref: Ref, parts: Sequence[Record]) -> list[Ref]:
        """Promised in Spool."""
        assert sum(part.events for part in parts) == ref.events, "the parts hold the same events"
        return await self._run(settled=[ref], parts=[(ref.lane, part) for part in parts])

    # -- what operators do --------------------------------------------------------------------------------------------

    async def replay(self, choice: Choice, progress: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Queue the chosen dead letters anew; `progress` hears how many so far. Raises SpoolError."""
        return await self._graveyard.replay(choice, progress)

    async def purge(self, choice: Choice, progress: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Drop the chosen dead letters for good; `progress` hears how many so far. Raises SpoolError."""
        return await self._graveyard.purge(choice, progress)

    async def hold_lane(self, lane: int, *, paused: bool) -> None:
        """Remember over restarts whether an operator holds a lane; holding it is the forwarder's. Raises SpoolError."""
        self._writer.open_lane(lane, self._lanes[lane].key)  # which the file may have lost
        await self._run(paused=[(lane, paused)])

    async def rekey(self, lane: int, key: str) -> None:
        """Have everything in a lane, dead letters too, travel under another key from now on. Raises SpoolError.

        Chunks stay where they are, leases hold, and batches that are under way end under the old key. A lane that has
        the new key already stays beside this one, and new events of that key go there; new events of the old key open
        a lane of their own.
        """
        self._writer.open_lane(lane, self._lanes[lane].key)
        await self._run(rekeyed=[(lane, key)])

    # -- numbers ------------------------------------------------------------------------------------------------------

    def lanes(self) -> list[LaneStats]:
        """Promised in Spool."""
        return [lane.stats() for lane in self._lanes if lane.events]

    def all_lanes(self) -> list[LaneStats]:
        """Every lane there is a reason to remember: events, counted already or not, dead letters, or a pause."""
        return [lane.stats() for lane in self._lanes if self._pager.recovering or not lane.is_idle()]

    def stats(self) -> Stats:
        """Promised in Spool."""
        return Stats(
            refusal=self.not_ready() or "",
            recovering=self._pager.recovering,
            events=sum(lane.events for lane in self._lanes),
            bytes=self._room.used_bytes,
            capacity_bytes=self._room.capacity_bytes,
            in_flight_events=sum(lane.in_flight_events for lane in self._lanes),
            recovered_events=self._books.recovered,
            enqueued_events=self._books.enqueued,
            acked_events=self._books.acked,
            dead_events=self._books.dead_events,
            dead_recovered_events=self._books.dead_recovered,
            dead_lettered_events=dict(self._books.dead_lettered),
            dead_replayed_events=self._books.dead_replayed,
            dropped_events=dict(self._books.dropped),
            disk_free_bytes=self._room.space.free_bytes,
            disk_size_bytes=self._room.space.size_bytes,
            volatile=self._folder.volatile,
        )

    # -- what the writer reports --------------------------------------------------------------------------------------

    def _report(self, outcome: Outcome) -> None:
        """Bring an outcome from the writer thread to the loop."""
        self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self._settle_done(outcome)
        elif isinstance(outcome, Failed):
            self._settle_failed(outcome)
        else:
            self._mirror.add_found(outcome)
        # Two turns: one in which the answers go out, one in which what they bring in is read.
        self._loop.call_soon(self._loop.call_soon, self._writer.go_on)

    def _settle_done(self, done: Done) -> None:
        if self._failures:
            _log.info("commits_recovered", failed_commits=self._failures)
        if self._failing is not None:
            self._pager.page_in()  # which a failing disk may have ended
        self._failures, self._failing = 0, None
        self._room.used_bytes, self._room.space = done.usage.used_bytes, done.space
        woken = self._mirror.apply(done)
        for append in done.appends:
            self._waiting.answer(append, None)
        if done.appends:
            self._committed(done.seconds, sum(append.events for append in done.appends))
        for lane in woken:
            self._tell(lane)
        self._graveyard.keep_within_bound()

    def _settle_failed(self, failed: Failed) -> None:
        full = isinstance(failed.error, StoreFull)
        if not full and not self._failures:
            _log.error("commit_failed", error=str(failed.error), events=sum(a.events for a in failed.appends))
        self._failures += not full
        if not failed.usable:
            self._failing = failed.error
        kind = QueueFull if full else DiskFailing
        for append in failed.appends:
            self._waiting.answer(append, kind(f"the events could not be stored: {failed.error}"))
        for job in failed.jobs:
            if not job.future.done():
                job.future.set_exception(failed.error)
        if self._failures == self._failures_max:
            self._gave_up(failed.error)

    def _left(self, append: Append) -> None:
        self._room.pending_bytes -= append.bytes
        self._lanes[append.lane].pending_events -= append.events

    async def _in_reader(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._reader, work)

    async def _read_disk(self, work: Callable[[], T]) -> T:
        try:
            return await self._in_reader(work)
        except StoreDamaged as damage:
            if self._failing is None:
                _log.error("queue_file_damaged", error=str(damage))
                self._failing = damage  # until the writer has salvaged it
                self._writer.distrust()
            raise

    async def _run(self, **changes: Any) -> list[Ref]:
        """Have the writer do a job, the fields of which these are; gives the chunks that it made."""
        if self._closed:
            raise StoreFailed("the queue is closed")
        job = Job(self._loop.create_future(), **changes)
        self._writer.run(job)
        return await job.future

    async def _select_letters(self, choice: Choice, after: int, upto: int, limit: int) -> list[DeadLetter]:
        return await self._read_disk(lambda: self._store.dead_letters(choice, after=after, upto=upto, limit=limit))

    def _give_up(self, error: SpoolError) -> None:
        self._failing = error
        self._gave_up(error)

    def _lose(self, ref: Ref) -> None:
        """Count a leased chunk that is gone from the disk, row and index entry: nothing is left to set aside."""
        _log.error("chunk_lost", chunk=ref.id, events=ref.events)
        self._lanes[ref.lane].settle(ref)
        self._books.lost("corrupt", ref.events)

    def _tell(self, lane: int) -> None:
        if not self._lanes[lane].paused:
            for wake in self._wakers:
                wake(lane)
