"""The writer thread: takes everything that waits, merges what may travel together, commits it as one transaction.

    append, ack, job ──► waiting ──take──► merge, deflate, checksum ──► Store.commit ──► one wake-up of the loop

The fsync in flight is the batching window: what arrives during it makes up the next commit, with what the loop's next
turn brings, for those that were just answered send again. That turn makes commits up to four times as large, and a
busy relay a sixth cheaper (measured 2026-11). No timer is involved.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from relay.errors import NotNow, SpoolError, StoreBusy, StoreFailed, StoreFull
from relay.spool import Ref, Verdict
from relay.spool.folder import Space
from relay.spool.record import Record, encode
from relay.spool.store import Changes, Entry, Grave, Row, Store, Usage
from relay.spool.table import PAGE_BYTES, WAL_BYTES_MAX

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator, Sequence

    from relay.spool.letters import DeadLetter

Heard = Callable[[NotNow | None], None]
"""Hears that records are on disk (None), or why they are not."""

ROW_BYTES: Final = 128
"""What a row costs beside its bytes: header, index entry, page overhead."""
COMMIT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of one transaction, before deflating; a single request may be larger and then has one to itself."""
RETRY_SECONDS: Final = 0.5
"""Between attempts at a store that fails."""
FOUND_ROWS_MAX: Final = 1_000_000
"""More than failed transactions can have left."""
MEASURE_SECONDS: Final = 0.1
"""Between two looks at pages and disk while there is room."""
SPACIOUS_SHARE: Final = 0.8
"""Of the capacity: past it every commit looks."""
TURN_SECONDS_MAX: Final = 0.05
"""The next commit waits this long at most for the loop's turn: a loop that hangs must not stop the disk."""
BEAT_SECONDS: Final = 1.0
"""An idle writer shows that it lives, and gives free pages back, this often."""
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""Of log, after which it is brought into the file: what SQLite does by itself, unless it is told not to."""
COMMIT_LOG_BYTES: Final = 4 * PAGE_BYTES
"""What a commit adds to the log beside its rows: the ends of the table, the index and the sequence."""
DELETE_LOG_BYTES: Final = 128
"""What a row that goes adds to the log: its share of a page."""
SHRINK_FROM_BYTES: Final = 32 * 1024 * 1024
"""Free pages kept in the file for the next burst; more are given back to the disk."""
SHRINK_PAGES: Final = 256
"""Given back in one step, 1 MiB: an append never waits long behind it."""
SHRINK_SECONDS: Final = 0.1
"""Between two steps of an idle writer: a backlog's gigabyte is back in two minutes."""


class Append:
    """One request's records on their way to the disk. `done` belongs to the loop, `committing` to the writer's lock."""

    __slots__ = ("bytes", "committing", "done", "due", "events", "lane", "records")

    def __init__(self, lane: int, records: Sequence[Record], done: Heard, due: float) -> None:
        self.lane = lane
        self.records = records
        self.events = 0
        self.bytes = 0
        for record in records:
            self.events += record.events
            self.bytes += len(record.text) + len(record.envelope) + len(record.headers) + ROW_BYTES
        self.done: Heard | None = done
        """Called once with None or the refusal; None afterwards."""
        self.due = due
        self.committing = False


class Job(msgspec.Struct):
    """A change that somebody waits for; the future gives the chunks that it made."""

    future: asyncio.Future[list[Ref]]
    settled: list[Ref] = []
    graves: list[tuple[Ref, Verdict]] = []
    parts: list[tuple[int, Record]] = []
    revived: list[DeadLetter] = []
    dropped: list[DeadLetter] = []
    drop_reason: str = ""
    paused: list[tuple[int, bool]] = []
    rekeyed: list[tuple[int, str]] = []
    forgotten_lanes: list[int] = []


class Work(msgspec.Struct):
    """What one transaction settles."""

    lanes: list[tuple[int, str]]
    appends: list[Append]
    acks: list[Ref]
    jobs: list[Job]

    def __bool__(self) -> bool:
        return bool(self.appends or self.acks or self.jobs or self.lanes)


class Done(msgspec.Struct, frozen=True):
    """A transaction that is on the disk."""

    appends: list[Append]
    rows: list[Row]
    acks: list[Ref]
    jobs: list[tuple[Job, list[Ref]]]
    """With the chunks that each has made."""
    usage: Usage
    space: Space
    seconds: float


class Found(msgspec.Struct, frozen=True):
    """Rows of a transaction that was reported as failed and that a reopened store holds after all."""

    entries: list[Entry]


class Failed(msgspec.Struct, frozen=True):
    """A transaction that is not; its rows may be `Found` all the same once the store is reopened."""

    appends: list[Append]
    jobs: list[Job]
    error: SpoolError
    usable: bool
    """It was too large for the room there is, and its deletes alone are done."""


Outcome = Done | Found | Failed


class Writer:
    """The thread and what waits for it. Methods are for the event loop, but for `_run` and what it calls."""

    def __init__(
        self,
        store: Store,
        *,
        last_id: int,
        chunk_events_max: int,
        chunk_bytes_max: int,
        report: Callable[[Outcome], None],
        space: Callable[[], Space],
        now_ms: Callable[[], int],
        disk_free_bytes_min: int = 0,
    ) -> None:
        """`report` is called in the writer thread after every transaction, and once in a while when idle.

        With less free on the disk than `disk_free_bytes_min` nothing is let in, so room that the file does not need is
        given back before that.
        """
        self._store = store
        self._events_max = chunk_events_max
        self._bytes_max = chunk_bytes_max
        self._report = report
        self._space = space
        self._now_ms = now_ms
        self._spare_bytes = disk_free_bytes_min + SHRINK_FROM_BYTES
        self._idle_seconds = BEAT_SECONDS
        self._shrunk_at = 0.0
        self._logged_bytes = 0
        """About what the log has grown by since it was last brought into the file; asking SQLite would cost a call."""
        self._next_id = last_id + 1
        self._committed_to = last_id
        self._measured = Usage(0, 0), Space(0, 0)
        self._measured_at = float("-inf")
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._turned = threading.Event()
        """The loop has had its turn since the last commit."""
        self._asleep = False
        """The thread waits for work; while it commits, nobody has to wake it."""
        self._work = _nothing()
        self._stopping = False
        self._broken = False
        self._refused = False
        """The last transaction found no room, or a lock: with nothing to commit, a small one is tried until it goes."""
        self._looked_at = time.monotonic()
        self.beat = time.monotonic()
        """When the thread last showed that it lives, monotonic seconds."""
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def stop(self) -> None:
        """Commit what waits, then end; blocks until the thread has ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def is_alive(self) -> bool:
        """Whether the thread exists; a slow disk does not make it less alive."""
        return self._thread.is_alive()

    def open_lane(self, number: int, key: str) -> None:
        """Have a lane's key written before its first chunk."""
        with self._wake:
            self._work.lanes.append((number, key))

    def append(self, append: Append) -> None:
        """Queue a request's records."""
        with self._lock:
            self._work.appends.append(append)
            if self._asleep:
                self._wake.notify()

    def ack(self, refs: Iterable[Ref]) -> None:
        """Queue deletes."""
        with self._wake:
            self._work.acks.extend(refs)
            self._wake.notify()

    def run(self, job: Job) -> None:
        """Queue a change that somebody waits for."""
        with self._wake:
            self._work.jobs.append(job)
            self._wake.notify()

    def distrust(self) -> None:
        """Have the store opened anew before anything else is committed: a reader found the file damaged."""
        with self._wake:
            self._broken = True
            self._wake.notify()

    def go_on(self) -> None:
        """Begin the next commit: whoever the last one answered has had a turn."""
        self._turned.set()

    def withdraw(self, append: Append) -> bool:
        """Take a request back; False where its transaction is under way already."""
        with self._wake:
            if append.committing:
                return False
            with contextlib.suppress(ValueError):
                self._work.appends.remove(append)
            return True

    def _run(self) -> None:
        while (work := self._take()) is not None:
            self.beat = time.monotonic()
            self._turned.clear()
            self._report(self._commit(work))
            self._tend(idle=not work)
            if work.appends:
                self._turned.wait(TURN_SECONDS_MAX)

    def _take(self) -> Work | None:
        """Wait for work and take a transaction's worth; None when stopped and empty, empty work when idle."""
        with self._wake:
            if self._stopping and (self._broken or not self._work):
                return None
            if not self._work and not self._broken:
                self._asleep = True
                self._wake.wait(timeout=self._idle_seconds)
                self._asleep = False
            work, self._work = self._work, _nothing()
            room = COMMIT_BYTES_MAX
            for at, append in enumerate(work.appends):
                room -= append.bytes
                if room < 0 and at > 0:
                    self._work.appends = work.appends[at:]
                    del work.appends[at:]
                    break
                append.committing = True
            return work

    def _commit(self, work: Work) -> Outcome:
        began = time.monotonic()
        try:
            if self._broken:
                self._reopen()
            elif began - self._looked_at > BEAT_SECONDS:
                self._looked_at = began
                self._store.look()
            changes = Changes(lanes=work.lanes, deletes=[ref.id for ref in work.acks])
            changes.rows = list(self._chunks(work.appends))
            jobs = [(job, self._prepare(job, changes)) for job in work.jobs]
            stored = sum(len(row.data) + ROW_BYTES for row in changes.rows)
            if work:
                self._store.commit(changes)
                self._committed_to = self._next_id - 1
                self._logged_bytes += COMMIT_LOG_BYTES + stored + len(changes.deletes) * DELETE_LOG_BYTES
            elif self._refused:
                self._store.prove()
            self._refused = False
            usage, space = self._measure(began, stored=stored, idle=not work)
        except SpoolError as exc:
            return self._failed(work, exc)
        return Done(work.appends, changes.rows, work.acks, jobs, usage, space, time.monotonic() - began)

    def _measure(self, now: float, *, stored: int, idle: bool) -> tuple[Usage, Space]:
        """Look at pages and disk, but not at every commit while there is room.

        Each look lets go of the interpreter, and a busy loop takes its time to hand it back: looking cost the writer
        more than committing did (measured 2026-11).
        """
        usage, space = self._measured
        spacious = usage.used_bytes < self._store.capacity_bytes * SPACIOUS_SHARE
        if idle or not spacious or now - self._measured_at > MEASURE_SECONDS:
            usage, space = self._store.usage(), self._space()
            self._measured_at = now
        else:  # what was deleted meanwhile counts at the next look
            usage = msgspec.structs.replace(usage, used_bytes=usage.used_bytes + stored)
        self._measured = usage, space
        return usage, space

    def _reopen(self) -> None:
        """Trust nothing in memory after a failure; prove that the disk takes a transaction before more are risked."""
        self._broken = False  # a reader may find something wrong again while we are at it
        try:
            self._store.reopen()
            self._store.prove()
            if self._committed_to < self._next_id - 1:
                found = self._store.entries(self._committed_to, self._next_id - 1, FOUND_ROWS_MAX)
                self._report(Found(found))
                self._committed_to = self._next_id - 1
        except SpoolError:
            self._broken = True
            raise

    def _failed(self, work: Work, error: SpoolError) -> Failed:
        """Keep the deletes and the new lanes for another try; on a full store try the deletes alone, they make room."""
        usable = False
        if isinstance(error, StoreFull):
            try:
                self._store.checkpoint()  # a log that cannot grow begins anew, in the room that it has
            except (StoreFull, StoreBusy):
                pass
            except SpoolError:
                self._broken = True
        if isinstance(error, StoreFull) and work.acks and (work.appends or work.jobs):
            alone = self._commit(Work(lanes=[], appends=[], acks=work.acks, jobs=[]))
            usable = isinstance(alone, Done)
            if usable:
                self._report(alone)
            work.acks = []  # done, or put back by the attempt itself
        with self._wake:
            self._work.lanes[:0] = work.lanes
            self._work.acks[:0] = work.acks
        self._refused = isinstance(error, StoreFull | StoreBusy) and not usable
        self._broken = self._broken or (isinstance(error, StoreFailed) and not isinstance(error, StoreBusy))
        if self._broken or work.acks:
            time.sleep(RETRY_SECONDS)
        return Failed(work.appends, work.jobs, error, usable=usable)

    def _prepare(self, job: Job, changes: Changes) -> list[Ref]:
        now_ms = self._now_ms()
        rows = [self._row(lane, record) for lane, record in job.parts]
        changes.rows += rows
        changes.deletes += [ref.id for ref in job.settled]
        changes.graves += [Grave(ref.id, verdict, now_ms) for ref, verdict in job.graves]
        changes.dropped += [letter.id for letter in job.dropped]
        changes.paused += job.paused
        changes.rekeyed += job.rekeyed
        changes.forgotten_lanes += job.forgotten_lanes
        revived = [self._revive(letter, now_ms) for letter in job.revived]
        changes.revived += [(old.id, new.id, now_ms) for old, new in zip(job.revived, revived, strict=True)]
        return [Ref(row.id, row.lane, row.events, len(row.data), row.accepted_at_ms) for row in rows] + revived

    def _revive(self, letter: DeadLetter, now_ms: int) -> Ref:
        """Queue a dead letter anew: behind all others, and its age begins again, or it would expire at once."""
        self._next_id += 1
        return Ref(self._next_id - 1, letter.lane, letter.events, letter.bytes, now_ms)

    def _chunks(self, appends: list[Append]) -> Iterator[Row]:
        """Make rows of records; small ones of one lane that may travel together share a chunk."""
        groups: dict[object, list[tuple[int, Record]]] = {}
        for append in appends:
            for record in append.records:
                kin = (append.lane, record.dead, *record.travels_with())
                groups.setdefault(kin, []).append((append.lane, record))
        for group in groups.values():
            lane = group[0][0]
            for records in self._fitting([record for _, record in group]):
                yield self._row(lane, records[0] if len(records) == 1 else _merge(records))

    def _fitting(self, records: list[Record]) -> Iterator[list[Record]]:
        """Cut a run of kindred records where a chunk would grow past its bounds."""
        taken: list[Record] = []
        events = size = 0
        for record in records:
            full = events + record.events > self._events_max or size + len(record.text) > self._bytes_max
            if taken and full:
                yield taken
                taken, events, size = [], 0, 0
            taken.append(record)
            events += record.events
            size += len(record.text) + 1
        yield taken

    def _row(self, lane: int, record: Record) -> Row:
        row = Row(self._next_id, lane, record.events, record.accepted_at_ms, encode(record), record.dead)
        self._next_id += 1
        return row

    def _tend(self, *, idle: bool) -> None:
        """Do what is due to the log and the file; whoever waited for the last commit has been told.

        A sync that fails here is as bad as one in a commit: SQLite's next one says yes, and what it was to bring from
        the log into the file may not be there. So the store is opened anew, which brings all of it once more.
        """
        if self._broken:
            return
        try:
            self._shrink(idle=idle)
            if self._logged_bytes > CHECKPOINT_BYTES:
                self._logged_bytes = 0
                self._store.checkpoint()
        except (StoreFull, StoreBusy):
            pass  # the log keeps what it has, and a commit that meets the same reports it
        except SpoolError as exc:
            self._report(self._failed(_nothing(), exc))

    def _shrink(self, *, idle: bool) -> None:
        """Give free pages back until only a burst's worth is kept, or none where the disk runs out of room.

        A step at a time, and while there is work and room only one a beat.
        """
        self._idle_seconds = BEAT_SECONDS
        usage, space = self._measured
        scarce = space.free_bytes < self._spare_bytes
        if idle and usage.log_bytes > WAL_BYTES_MAX:
            self._store.cut_log()
        due = idle or scarce or self.beat - self._shrunk_at > BEAT_SECONDS
        if due and usage.free_bytes > (0 if scarce else SHRINK_FROM_BYTES):
            self._shrunk_at, self._idle_seconds = self.beat, SHRINK_SECONDS
            self._store.give_back(SHRINK_PAGES)


def _merge(records: list[Record]) -> Record:
    """Make one record of kindred ones, in order; it is as old as the oldest of them."""
    first = records[0]
    return Record(
        key=first.key,
        envelope=first.envelope,
        headers=first.headers,
        text=b",".join([record.text for record in records]),
        events=sum(record.events for record in records),
        accepted_at_ms=min(record.accepted_at_ms for record in records),
        skew_ms=first.skew_ms,
        dead=first.dead,
    )


def _nothing() -> Work:
    return Work(lanes=[], appends=[], acks=[], jobs=[])
