"""The disk spool's async face: admits, waits for the fsync, hands out lanes, and keeps the books.

Everything here runs on the event loop. The writer thread commits and reports once per transaction; one reader thread
fetches bodies and, after a start, the index of what an earlier life left, in pages, behind the open door.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from relay.errors import AnswerDue, ChunkCorrupt, DiskFailing, NotNow, QueueFull, SpoolError, StoreFull
from relay.spool import Chunk, LaneStats, Record, Ref, Stats, Verdict
from relay.spool.folder import Folder, Space
from relay.spool.index import Lane, Lanes
from relay.spool.record import decode
from relay.spool.store import Entry, Row, Store
from relay.spool.writer import Append, Done, Failed, Found, Heard, Job, Outcome, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


T = TypeVar("T")

_log = structlog.get_logger()

INDEX_ENTRIES_MAX: Final = 1_000_000
"""Free chunks whose entries are held in memory, 28 MB; the rest stay on disk until these are delivered."""
PAGE_ENTRIES: Final = 5_000
"""Read at once into the index: some 10 ms of work between other requests."""
TOTALS_SPAN: Final = 100_000
"""Ids summed up at once for what lies beyond the window in memory."""
RECENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Rows kept in memory after their commit, so that prompt delivery reads no disk."""
RESERVE_SHARE: Final = 64
"""One part in so many of the capacity is kept for marks and parts: what is full must still be able to drain."""
READY_BYTES: Final = 64 * 1024
"""Room for a usual request: with less the spool does not call itself ready."""
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
        self._disk_free_min = disk_free_bytes_min
        self._lanes_max = lanes_max
        self._lane_share = lane_bytes_share_max
        self._is_held_back: Callable[[int], bool] = lambda _: False
        self._index_max = index_entries_max
        self._failures_max = failures_max
        self._now_ms = now_ms
        self._committed = committed
        self._gave_up = failed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="spool-reader")
        self._chunk_events_max = chunk_events_max
        self._chunk_bytes_max = chunk_bytes_max
        self._lanes = Lanes()
        self._waiting: dict[Append, None] = {}  # in order of arrival, and so of their deadlines
        self._sweeper: asyncio.TimerHandle | None = None
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._wakers: list[Callable[[int], None]] = []
        self._pager: asyncio.Task[None] | None = None
        self._loaded = 0  # entries held in memory
        self._known_to = 0  # every chunk up to this id is in the index
        self._last_id = 0
        self._recover_to = 0  # chunks up to this id are an earlier life's
        self._counted_to = 0  # of those, every chunk up to this id is in the totals
        self._pending_bytes = 0
        self._failures = 0
        self._failing: SpoolError | None = None
        self._closed = False
        self._used_bytes = 0
        self._space = Space(0, 0)
        self._recovered = self._enqueued = self._acked = 0
        self._dead = self._dead_recovered = self._dead_replayed = 0
        self._dead_lettered: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Be ready to append; the index of an earlier life goes on loading behind it."""
        await self._read_disk(self._survey)
        self._writer = Writer(
            self._store,
            last_id=self._last_id,
            chunk_events_max=self._chunk_events_max,
            chunk_bytes_max=self._chunk_bytes_max,
            report=self._report,
            space=self._folder.space,
            now_ms=self._now_ms,
        )
        self._writer.start()
        self._page_in()

    def _survey(self) -> None:
        """Learn what an earlier life left, all but the index; in the reader thread."""
        self._last_id = self._recover_to = self._store.last_id()
        self._lanes.restore(self._store.lanes())
        self._dead, _ = self._store.dead_totals()
        self._dead_recovered = self._dead
        self._used_bytes = self._store.usage().used_bytes
        self._space = self._folder.space()

    async def close(self) -> None:
        """Commit what waits, answer who waits, close the file; the folder stays the opener's. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._pager is not None:
            await asyncio.gather(self._pager, return_exceptions=True)
        await asyncio.to_thread(self._writer.stop)
        await asyncio.sleep(0)  # let the last report in
        for append in list(self._waiting):
            self._answer(append, DiskFailing("the relay stopped before these events were on disk; send them again"))
        await asyncio.to_thread(self._close_store)

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
            self._check_room(READY_BYTES)
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
        self._check_room(append.bytes)
        self._check_share(lane, append.bytes)
        self._pending_bytes += append.bytes
        lane.pending_events += append.events
        self._waiting[append] = None
        self._writer.append(append)
        if self._sweeper is None:
            self._sweeper = self._loop.call_at(deadline, self._sweep)

    def _admit(self, records: Sequence[Record]) -> Lane:
        if self._closed:
            raise DiskFailing("the relay is stopping; send the request again")
        if self._failing is not None:
            raise DiskFailing(f"the queue's disk fails ({self._failing}); events are not accepted until it recovers")
        key = records[0].key
        assert all(record.key == key for record in records), "one append, one key"
        lane = self._lanes.of_key(key)
        return lane if lane is not None else self._open_lane(key)

    def _open_lane(self, key: str) -> Lane:
        if len(self._lanes) >= self._lanes_max:
            idle = self._lanes.find_idle()
            if idle is None:
                raise QueueFull(
                    f"{self._lanes_max} keys have events queued (queue.lanes_max); a further key has to wait until one "
                    "of them is delivered"
                )
            self._lanes.forget(idle)
            job = Job(self._loop.create_future())
            job.forgotten_lanes.append(idle.number)
            self._writer.run(job)
        lane = self._lanes.open(key)
        self._writer.open_lane(lane.number, key)
        return lane

    def _check_room(self, size: int) -> None:
        capacity = self._store.capacity_bytes
        if self._used_bytes + self._pending_bytes + size > capacity - capacity // RESERVE_SHARE:
            raise QueueFull(
                f"the queue is full: {self._used_bytes} of {capacity} bytes hold events that upstream has not taken yet"
            )
        if self._space.free_bytes - self._pending_bytes - size < self._disk_free_min:
            raise QueueFull(
                f"the disk has {self._space.free_bytes} bytes free, of which queue.disk_free_bytes_min keeps "
                f"{self._disk_free_min}"
            )

    def _check_share(self, lane: Lane, size: int) -> None:
        """Keep a lane that is stuck from taking the room of those that move."""
        share = int(self._store.capacity_bytes * self._lane_share)
        if lane.bytes + size > share and len(self._lanes) > 1 and self._is_held_back(lane.number):
            raise QueueFull(
                f"upstream does not take this key's events; they hold {lane.bytes} bytes already, and its share of the "
                f"queue is {share} while other keys need room (queue.lane_bytes_share_max)"
            )

    # -- out ----------------------------------------------------------------------------------------------------------

    def subscribe(self, wake: Callable[[int], None]) -> None:
        """Promised in Spool."""
        self._wakers.append(wake)
        for lane in self._lanes:
            if len(lane):
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
        self._loaded -= len(taken)
        if self._loaded < self._index_max // 2 or not len(self._lanes[lane]):
            self._page_in()  # also when others fill the window: a parked lane must not hide what lies behind it
        return taken

    async def read(self, refs: Sequence[Ref]) -> list[Chunk]:
        """Promised in Spool."""
        rows = {ref.id: (ref.lane, self._recent[ref.id]) for ref in refs if ref.id in self._recent}
        absent = [ref.id for ref in refs if ref.id not in rows]
        if absent:
            rows |= await self._read_disk(lambda: self._store.read(absent))
        chunks: list[Chunk] = []
        for ref in refs:
            try:
                if ref.id not in rows:
                    raise ChunkCorrupt(f"chunk {ref.id} is in the index and not in the table")
                chunks.append(decode(ref.id, *rows[ref.id]))
            except ChunkCorrupt as exc:
                await self.bury([ref], Verdict(reason="corrupt", detail=str(exc)))
        return chunks

    def ack(self, refs: Sequence[Ref]) -> None:
        """Promised in Spool."""
        for ref in refs:
            self._forget_recent(ref.id)
        self._writer.ack(refs)

    def release(self, refs: Sequence[Ref]) -> None:
        """Promised in Spool."""
        for ref in refs:
            self._lanes[ref.lane].release(ref)
            self._loaded += 1
        for lane in {ref.lane for ref in refs}:
            self._tell(lane)

    async def bury(self, refs: Sequence[Ref], verdict: Verdict) -> None:
        """Promised in Spool."""
        job = Job(self._loop.create_future())
        job.graves = [(ref, verdict) for ref in refs]
        self._writer.run(job)
        await job.future

    async def replace(self, ref: Ref, parts: Sequence[Record]) -> list[Ref]:
        """Promised in Spool."""
        assert sum(part.events for part in parts) == ref.events, "the parts hold the same events"
        job = Job(self._loop.create_future())
        job.settled = [ref]
        job.parts = [(ref.lane, part) for part in parts]
        self._writer.run(job)
        return [_ref(row) for row in await job.future]

    # -- numbers ------------------------------------------------------------------------------------------------------

    def lanes(self) -> list[LaneStats]:
        """Promised in Spool."""
        return [lane.stats() for lane in self._lanes if lane.events]

    def stats(self) -> Stats:
        """Promised in Spool."""
        return Stats(
            refusal=self.not_ready() or "",
            recovering=self._counted_to < self._recover_to,
            events=sum(lane.events for lane in self._lanes),
            bytes=self._used_bytes,
            capacity_bytes=self._store.capacity_bytes,
            in_flight_events=sum(lane.in_flight_events for lane in self._lanes),
            recovered_events=self._recovered,
            enqueued_events=self._enqueued,
            acked_events=self._acked,
            dead_events=self._dead,
            dead_recovered_events=self._dead_recovered,
            dead_lettered_events=dict(self._dead_lettered),
            dead_replayed_events=self._dead_replayed,
            dropped_events=dict(self._dropped),
            disk_free_bytes=self._space.free_bytes,
            disk_size_bytes=self._space.size_bytes,
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
            self._settle_found(outcome)

    def _settle_done(self, done: Done) -> None:
        if self._failing is not None:
            _log.info("commits_recovered", failed_commits=self._failures)
        self._failures, self._failing = 0, None
        self._used_bytes, self._space = done.usage.used_bytes, done.space
        born = {row.id for _, rows in done.jobs for row in rows}
        woken = {row.lane for row in done.rows if row.id not in born and self._take_in(row)}
        for ref in done.acks:
            self._lanes[ref.lane].settle(ref)
            self._acked += ref.events
        for job, rows in done.jobs:
            self._settle_job(job, rows)
        for append in done.appends:
            self._answer(append, None)
        if done.appends:
            self._committed(done.seconds, sum(append.events for append in done.appends))
        for lane in woken:
            self._tell(lane)

    def _take_in(self, row: Row) -> bool:
        """Count a chunk that an append brought; True where it can be leased now."""
        self._enqueued += row.events
        if row.dead is not None:
            self._dead += row.events
            self._dead_lettered[row.dead.reason] += row.events
            self._pass_by(row.id)
            return False
        self._remember_recent(row)
        return self._add(Entry(row.id, row.lane, row.events, len(row.data), row.accepted_at_ms))

    def _add(self, entry: Entry) -> bool:
        """Count a chunk in; True where its entry found room in memory."""
        lane = self._lanes[entry.lane]
        lane.events += entry.events
        lane.bytes += entry.bytes
        if self._known_to != self._last_id or self._loaded >= self._index_max:
            self._last_id = entry.id
            return False
        lane.push(entry)
        self._loaded += 1
        self._pass_by(entry.id)
        return True

    def _pass_by(self, chunk: int) -> None:
        """Note that a chunk exists which the index need not hold, or holds by now."""
        if self._known_to == self._last_id:
            self._known_to = chunk
        self._last_id = chunk

    def _settle_found(self, found: Found) -> None:
        for entry in found.entries:
            self._recovered += entry.events
            if self._add(entry):
                self._tell(entry.lane)

    def _settle_job(self, job: Job, rows: list[Row]) -> None:
        for ref in job.settled:
            self._lanes[ref.lane].settle(ref)
        for row in rows:
            self._lanes[row.lane].adopt(_ref(row))
            self._pass_by(row.id)
        for ref, verdict in job.graves:
            self._lanes[ref.lane].settle(ref)
            self._forget_recent(ref.id)
            self._dead += ref.events
            self._dead_lettered[verdict.reason] += ref.events
        if not job.future.done():
            job.future.set_result(rows)

    def _settle_failed(self, failed: Failed) -> None:
        full = isinstance(failed.error, StoreFull)
        if not full:
            if self._failing is None:
                _log.error("commit_failed", error=str(failed.error), events=sum(a.events for a in failed.appends))
            self._failing = failed.error
            self._failures += 1
        for append in failed.appends:
            if full:
                self._answer(append, QueueFull(f"the queue is full: {failed.error}"))
            else:
                self._answer(append, DiskFailing(f"the events could not be stored: {failed.error}"))
        for job in failed.jobs:
            if not job.future.done():
                job.future.set_exception(failed.error)
        if self._failures == self._failures_max:
            self._gave_up(failed.error)

    def _answer(self, append: Append, refusal: NotNow | None) -> None:
        """Take a request off the books, and tell who waits for it, unless the deadline has told already."""
        if append in self._waiting:
            del self._waiting[append]
            self._pending_bytes -= append.bytes
            self._lanes[append.lane].pending_events -= append.events
        if append.done is not None:
            done, append.done = append.done, None
            done(refusal)

    # -- the answer bound ---------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Answer who has waited too long; one timer serves all, for all wait equally long."""
        self._sweeper = None
        now = self._loop.time()
        for append in list(self._waiting):
            if append.due > now:
                self._sweeper = self._loop.call_at(append.due, self._sweep)
                return
            if append.done is None:
                continue
            if self._writer.withdraw(append):
                self._answer(append, AnswerDue("the disk is too slow just now; nothing was stored", ambiguous=False))
            else:
                done, append.done = append.done, None
                done(AnswerDue("the disk is too slow just now; the events may have been stored", ambiguous=True))

    # -- the index of an earlier life ---------------------------------------------------------------------------------

    def _page_in(self) -> None:
        if self._pager is None and self._known_to < self._last_id and not self._closed:
            self._pager = self._loop.create_task(self._load(), name="spool-index")
            self._pager.add_done_callback(self._paged_in)

    def _paged_in(self, pager: asyncio.Task[None]) -> None:
        self._pager = None
        if not pager.cancelled() and (error := pager.exception()) is not None:
            self._failing = error if isinstance(error, SpoolError) else self._failing
            self._gave_up(error if isinstance(error, SpoolError) else SpoolError(f"the index cannot be read: {error}"))

    async def _load(self) -> None:
        """Fill the window in memory from the disk, then count what lies beyond it."""
        while self._known_to < self._last_id and not self._closed:
            await self._load_page()
            if self._loaded >= self._index_max:
                break
        while self._counted_to < self._recover_to and not self._closed:
            await self._count_page()

    async def _load_page(self) -> None:
        after, upto = self._known_to, self._last_id
        limit = min(PAGE_ENTRIES, self._index_max)
        entries = await self._read_disk(lambda: self._store.entries(after, upto, limit))
        self._known_to = entries[-1].id if len(entries) == limit else upto
        for entry in entries:
            lane = self._lanes[entry.lane]
            lane.push(entry)
            if self._counted_to < entry.id <= self._recover_to:
                lane.events += entry.events
                lane.bytes += entry.bytes
                self._recovered += entry.events
        self._loaded += len(entries)
        self._counted_to = max(self._counted_to, min(self._known_to, self._recover_to))
        for number in {entry.lane for entry in entries}:
            self._tell(number)

    async def _count_page(self) -> None:
        after = self._counted_to
        upto = min(after + TOTALS_SPAN, self._recover_to)
        for number, _, events, size in await self._read_disk(lambda: self._store.totals(after, upto)):
            self._lanes[number].events += events
            self._lanes[number].bytes += size
            self._recovered += events
        self._counted_to = upto

    # -- small things -------------------------------------------------------------------------------------------------

    async def _read_disk(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._reader, work)

    def _tell(self, lane: int) -> None:
        for wake in self._wakers:
            wake(lane)

    def _remember_recent(self, row: Row) -> None:
        self._recent[row.id] = row.data
        self._recent_bytes += len(row.data)
        while self._recent_bytes > RECENT_BYTES_MAX:
            self._forget_recent(next(iter(self._recent)))

    def _forget_recent(self, chunk: int) -> None:
        self._recent_bytes -= len(self._recent.pop(chunk, b""))

    def _close_store(self) -> None:
        self._reader.shutdown()
        self._store.close()


def _ref(row: Row) -> Ref:
    return Ref(row.id, row.lane, row.events, len(row.data), row.accepted_at_ms)
