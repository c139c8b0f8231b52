"""The disk, written and read in transactions; blocking. What the file looks like stands in table.py.

One thread may commit while another reads; `close` and `reopen` wait for both.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from relay.errors import SpoolError, StoreBusy, StoreDamaged, StoreFailed, StoreFull
from relay.spool import letters, logcheck, salvage
from relay.spool.record import Verdict  # noqa: TC001 – msgspec reads it when a Struct is decoded
from relay.spool.table import (
    APPLICATION_ID,
    FILE_NAME,
    FORMAT,
    LOCK_SECONDS,
    PAGE_BYTES,
    READ_ROWS_MAX,
    WAL_BYTES_MAX,
    ChunkTable,
    check_format,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from relay.spool.letters import Choice, DeadLetter

__all__ = ["APPLICATION_ID", "FILE_NAME", "FORMAT", "Changes", "ChunkTable", "Entry", "Grave", "Row", "Store", "Usage"]

_log = structlog.get_logger()

_KEY_END: Final = "\n"
"""No key holds a line break. A lane that was given another key is stored as that key, a line break and its number, so
that a lane which has that key already keeps it to itself: no two rows say the same."""


class Row(msgspec.Struct, frozen=True):
    """A chunk to be inserted."""

    id: int
    lane: int
    events: int
    accepted_at_ms: int
    data: bytes
    dead: Verdict | None = None


class Grave(msgspec.Struct, frozen=True):
    """A chunk to be marked as a dead letter where it lies."""

    id: int
    verdict: Verdict
    at_ms: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A chunk as the index knows it."""

    id: int
    lane: int
    events: int
    bytes: int
    accepted_at_ms: int


class LaneRow(msgspec.Struct, frozen=True):
    """A lane as it stands on disk."""

    number: int
    key: str
    paused: bool
    rekeyed: bool
    """It was given this key by an operator; another lane may have it too."""


class DeadTotals(msgspec.Struct, frozen=True):
    """What one lane holds as dead letters."""

    lane: int
    chunks: int
    events: int
    bytes: int


class Usage(msgspec.Struct, frozen=True):
    """What the queue takes: pages of the file, in use and free for the next rows, and its log."""

    used_bytes: int
    """With what the log has beyond its share: while somebody reads on and on, SQLite cannot begin it anew."""
    free_bytes: int
    log_bytes: int = 0


class Changes(msgspec.Struct):
    """What one transaction does."""

    lanes: list[tuple[int, str]] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    deletes: list[int] = msgspec.field(default_factory=list)
    graves: list[Grave] = msgspec.field(default_factory=list)
    forgotten_lanes: list[int] = msgspec.field(default_factory=list)
    revived: list[tuple[int, int, int]] = msgspec.field(default_factory=list)
    """Dead letters that are queued anew: (id, new id, accepted anew at, Unix ms)."""
    dropped: list[int] = msgspec.field(default_factory=list)
    """Dead letters that go for good."""
    paused: list[tuple[int, bool]] = msgspec.field(default_factory=list)
    rekeyed: list[tuple[int, str]] = msgspec.field(default_factory=list)


_INSERT_GRAVE: Final = (
    "INSERT OR REPLACE INTO dead_letters (chunk, reason, detail, status, attempts, first_attempt_at, died_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_MOVE: Final = "UPDATE queue_default SET _id = ?, timestamp = ? WHERE _id = ?"
_RAISE_SEQUENCE: Final = "UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'queue_default'"
"""SQLite does it by itself for an INSERT alone."""
_LIVE: Final = (
    "FROM queue_default AS q INDEXED BY chunks "
    "WHERE q._id > ? AND q._id <= ? AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE chunk = q._id)"
)


class Store:
    """The open file. Every method blocks; `commit` is for one thread at a time, the reading ones for another."""

    def __init__(
        self,
        path: Path,
        *,
        bytes_max: int,
        open_table: Callable[..., ChunkTable] = ChunkTable,
    ) -> None:
        """Open or create the file in a folder that is held already.

        Raises SpoolTooNew or SpoolForeign before anything is touched, StoreFailed where SQLite cannot open it.
        """
        self._path = path
        self._bytes_max = bytes_max
        self._open_table = open_table
        self._reading = threading.Lock()
        self._damaged = self._moved = self._failed = False
        self._files: list[tuple[int, int] | None] = []
        """What is open; empty where nothing is."""
        check_format(path / FILE_NAME)
        with translated("completing a salvage that was cut off"):
            salvage.finish(path)
        self._mend_log()
        with contextlib.suppress(StoreFailed, StoreFull):  # a reader must not block a start; a disk that fails is met
            self._begin_log_anew(wait_seconds=LOCK_SECONDS)
        try:
            self._table = self._open()
        except StoreDamaged as damage:
            self._mend(str(damage))
            self._table = self._open()
        self._damaged = False
        with contextlib.suppress(StoreFailed, StoreFull):  # beside a reader, as far as it can be
            self.cut_log()

    @property
    def capacity_bytes(self) -> int:
        """What live pages may come to: `bytes_max` without the write-ahead log's share."""
        return self._bytes_max - WAL_BYTES_MAX

    def reopen(self) -> None:
        """Close what is open and open it anew: after a failed commit nothing in memory can be trusted.

        What SQLite found damaged, or what somebody moved away underneath, is salvaged first, chunk by chunk under the
        same ids; a chunk of which only the index entry is left comes back without bytes, for `decode` to refuse.
        """
        with self._reading:
            if self._files:
                with contextlib.suppress(StoreFailed):  # whatever else failed, it may have been moved too
                    self.look()
            if self._moved:
                self._mend("the file was moved or removed underneath", source=self._table.writer)
            self._files, self._moved = [], False  # nothing is open: should what follows fail, what was saved stays
            with contextlib.suppress(sqlite3.Error):
                self._table.abandon()
            if self._damaged:
                self._mend("SQLite finds the file damaged")
            try:
                self._begin_log_anew(wait_seconds=0)
                self._table = self._open()
            except StoreBusy:
                self._table = (
                    self._open()
                )  # as the last to close, the other would empty the log, from where that stands
                raise
            except StoreDamaged as damage:
                self._mend(str(damage))
                self._table = self._open()
            self._damaged = self._failed = False

    def look(self) -> None:
        """Raise StoreFailed where a name no longer leads to the file that is open."""
        with self._translated("looking at the queue's files"):
            self._moved = self._identify() != self._files
        if self._moved:
            raise StoreFailed(f"{self._path / FILE_NAME} or its log was moved or replaced while the relay had it open")

    def close(self) -> None:
        """Bring the log into the file and close it; after a failure it stays as it is, for the next start to do so."""
        with self._reading, self._translated("closing the queue"):
            if self._failed:
                self._table.abandon()
            else:
                self._table.close()

    def commit(self, changes: Changes) -> None:
        """Do all of it in one transaction and return when it is on the disk.

        Raises StoreFull or StoreFailed; then none of it was done, save that after StoreFailed it may appear once the
        store is reopened.
        """
        writer = self._table.writer
        statements = list(_statements(self._table, changes))
        with self._translated("committing"):
            if len(statements) == 1 and len(statements[0][1]) == 1:  # a transaction by itself, in a third of the calls
                writer.execute(statements[0][0], statements[0][1][0])
                return
            writer.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    writer.executemany(sql, values)
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:  # SQLite rolls back by itself on FULL and IOERR
                    writer.execute("ROLLBACK")
                raise

    def prove(self) -> None:
        """Commit something small, to learn whether the disk takes it."""
        with self._translated("trying the disk"):
            self._table.writer.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('proved', datetime('now'))")

    def usage(self) -> Usage:
        """Pages in use and free; for the committing thread, from the page cache."""
        with self._translated("counting pages"):
            (pages,) = self._table.writer.execute("PRAGMA page_count").fetchone()
            (free,) = self._table.writer.execute("PRAGMA freelist_count").fetchone()
        log_bytes = 0
        with contextlib.suppress(FileNotFoundError):  # `look` tells of that
            log_bytes = (self._path / f"{FILE_NAME}-wal").stat().st_size
        used_bytes = (pages - free) * PAGE_BYTES + max(0, log_bytes - WAL_BYTES_MAX)
        return Usage(used_bytes=used_bytes, free_bytes=free * PAGE_BYTES, log_bytes=log_bytes)

    def give_back(self, pages: int) -> None:
        """Return some free pages to the file system; for the committing thread."""
        with self._translated("shrinking the file"):
            self._table.writer.executescript(f"PRAGMA incremental_vacuum({pages})")  # execute() would step once: a page
        self.checkpoint()  # which cuts the file; without one it stays as long as it was

    def checkpoint(self) -> None:
        """Move the log's pages into the file, as far as no reader needs them; for the committing thread.

        The log is then written from its start again, in room that it has already.
        """
        with self._translated("emptying the log"):
            self._table.writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def cut_log(self) -> None:
        """Empty the log and cut it to nothing, unless somebody reads it: then it stays, and nobody waits."""
        with self._translated("cutting the log"):
            self._table.writer.execute("PRAGMA busy_timeout=0")
            try:
                self._table.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._table.writer.execute(f"PRAGMA busy_timeout={LOCK_SECONDS * 1000:.0f}")

    def last_id(self) -> int:
        """The highest id ever given, 0 in a new file."""
        rows = self._select("SELECT seq FROM sqlite_sequence WHERE name = 'queue_default'")
        return int(rows[0][0]) if rows else 0

    def lanes(self) -> list[LaneRow]:
        """Every lane, those first that were not rekeyed."""
        rows = self._select("SELECT id, key, paused FROM lanes ORDER BY id")
        return sorted((lane_row(*row) for row in rows), key=lambda lane: lane.rekeyed)

    def entries(self, after: int, upto: int, limit: int) -> list[Entry]:
        """The next live chunks by id, `after` < id <= `upto`."""
        sql = f"SELECT q._id, q.lane, q.events, q.bytes, q.timestamp {_LIVE} ORDER BY q._id LIMIT ?"
        return [
            Entry(i, lane, n, size, round(at * 1000)) for i, lane, n, size, at in self._select(sql, after, upto, limit)
        ]

    def totals(self, after: int, upto: int) -> list[tuple[int, int, int, int]]:
        """Lane, chunks, events and bytes of live chunks, `after` < id <= `upto`."""
        sql = f"SELECT q.lane, COUNT(*), SUM(q.events), SUM(q.bytes) {_LIVE} GROUP BY q.lane"
        return self._select(sql, after, upto)

    def dead_totals(self) -> list[DeadTotals]:
        """What lies as dead letters, by lane."""
        found: dict[int, DeadTotals] = {}
        for lane, _, chunks, events, size, _ in letters.count(self._select, letters.Choice(), upto=self.last_id()):
            had = found.get(lane, DeadTotals(lane, 0, 0, 0))
            found[lane] = DeadTotals(lane, had.chunks + chunks, had.events + events, had.bytes + size)
        return list(found.values())

    def dead_letters(self, choice: Choice, *, after: int, upto: int, limit: int) -> list[DeadLetter]:
        """The next chosen dead letters by id, `after` < id <= `upto`."""
        return letters.select(self._select, choice, after=after, upto=upto, limit=limit)

    def read(self, ids: Sequence[int]) -> dict[int, tuple[int, bytes]]:
        """Lane and stored bytes by id; ids that are gone are left out."""
        found: dict[int, tuple[int, bytes]] = {}
        for start in range(0, len(ids), READ_ROWS_MAX):
            some = ids[start : start + READ_ROWS_MAX]
            marks = ",".join("?" * len(some))
            sql = f"SELECT _id, lane, data FROM queue_default WHERE _id IN ({marks})"  # noqa: S608 – marks alone
            found.update((chunk, (lane, data)) for chunk, lane, data in self._select(sql, *some))
        return found

    def _open(self) -> ChunkTable:
        file = self._path / FILE_NAME
        with self._translated(f"opening {file}"), contextlib.ExitStack() as undo:
            table = self._open_table(self._path, bytes_max=self._bytes_max)
            undo.callback(table.abandon)
            table.add_schema()
            for companion in ("", *salvage.COMPANIONS):
                (self._path / f"{FILE_NAME}{companion}").chmod(0o600)
            self._files = self._identify()
            undo.pop_all()
        return table

    def _begin_log_anew(self, *, wait_seconds: float) -> None:
        """Bring all that the log holds into the file and empty it; raises StoreBusy where others have the file open.

        After a failed fsync Linux takes pages for written that are not (wiki.postgresql.org/wiki/Fsync_Errors), of the
        log or of the file, and the next fsync says yes. A power cut would then end the log there, or leave holes in
        the file. Written to the file anew they are on the disk, or its fsync says no. What it has written already
        SQLite skips: beside a reader it brings over a part and does not sync it, and it keeps in the log's index,
        which all who have the file open share, how far it came. Whoever is alone makes the index anew, from nothing.
        """
        with (
            self._translated("beginning the log anew"),
            contextlib.closing(sqlite3.connect(self._path / FILE_NAME, timeout=wait_seconds)) as alone,
        ):
            alone.execute("PRAGMA locking_mode=EXCLUSIVE")
            alone.execute(
                "SELECT name FROM sqlite_schema LIMIT 1"
            ).fetchall()  # takes the lock: nobody else has it open
            (self._path / f"{FILE_NAME}-shm").unlink(missing_ok=True)  # or it would miss what the log no longer has
            alone.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _identify(self) -> list[tuple[int, int] | None]:
        """Which files the names lead to now: SQLite has the file, its log and their index open, whatever they do."""
        found: list[tuple[int, int] | None] = []
        for companion in ("", *salvage.COMPANIONS):
            try:
                about = (self._path / f"{FILE_NAME}{companion}").stat()
                found.append((about.st_dev, about.st_ino))
            except FileNotFoundError:
                found.append(None)
        return found

    def _mend(self, why: str, source: sqlite3.Connection | None = None) -> None:
        """Put a sound file in the place of one that is not; what was there stays beside it, under another name."""
        mended = salvage.mend(self._path, source=source, open_table=self._open_table)
        _log.error("queue_file_salvaged", why=why, **msgspec.structs.asdict(mended))

    def _mend_log(self) -> None:
        """Save what a damaged log hides, before SQLite opens it and drops that; whatever goes wrong blocks no start."""
        why = ""
        try:
            if why := logcheck.look(self._path):
                mended = logcheck.mend(self._path, open_table=self._open_table)
                _log.error("queue_file_salvaged", why=why, **msgspec.structs.asdict(mended))
        except SpoolError as exc:
            _log.error("queue_log_not_salvaged", why=why, error=str(exc))

    def _select(self, sql: str, *values: Any) -> list[Any]:
        with self._reading, self._translated("reading the queue"):
            return self._table.reader.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into ours, and remember that there was one, and whether the file is damaged."""
        try:
            with translated(doing):
                yield
        except StoreBusy:
            raise
        except StoreFailed as exc:
            self._failed = True
            self._damaged = self._damaged or isinstance(exc, StoreDamaged)
            raise


def _statements(table: ChunkTable, changes: Changes) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    """What a transaction executes, in an order in which each finds what it needs."""
    graves = changes.graves + _born_dead(changes.rows)
    unmarked = [old for old, _, _ in changes.revived] + changes.dropped
    for sql, values in (
        ("INSERT OR IGNORE INTO lanes (id, key) VALUES (?, ?)", changes.lanes),
        (table.sql_insert, [_row_values(row) for row in changes.rows]),
        (table.sql_delete, _runs(changes.deletes)),
        (_INSERT_GRAVE, [_grave_values(grave) for grave in graves]),
        (_MOVE, [(new, at_ms / 1000, old) for old, new, at_ms in changes.revived]),
        (_RAISE_SEQUENCE, [(new,) for _, new, _ in changes.revived[-1:]]),
        (table.sql_delete, _runs(changes.dropped)),
        ("DELETE FROM dead_letters WHERE chunk = ?", [(chunk,) for chunk in unmarked]),
        ("UPDATE lanes SET paused = ? WHERE id = ?", [(paused, lane) for lane, paused in changes.paused]),
        ("UPDATE lanes SET key = ? WHERE id = ?", [(f"{key}{_KEY_END}{lane}", lane) for lane, key in changes.rekeyed]),
        ("DELETE FROM lanes WHERE id = ?", [(lane,) for lane in changes.forgotten_lanes]),
    ):
        if values:
            yield sql, values


def _runs(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Give ids as ranges, first and last, with no id in them that was not given.

    What one batch delivered was mostly stored in a row, and each statement lets go of the interpreter, which a busy
    loop takes its time to hand back.
    """
    runs: list[tuple[int, int]] = []
    for chunk in sorted(ids):
        if runs and chunk <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], chunk
        else:
            runs.append((chunk, chunk))
    return runs


def lane_row(number: int, stored: str, paused: int) -> LaneRow:
    """Read a row of `lanes`."""
    key, rekeyed, _ = stored.partition(_KEY_END)
    return LaneRow(number=number, key=key, paused=bool(paused), rekeyed=bool(rekeyed))


def _row_values(row: Row) -> tuple[int, float, int, int, int, bytes]:
    return row.id, row.accepted_at_ms / 1000, row.lane, row.events, len(row.data), row.data


def _grave_values(grave: Grave) -> tuple[int, str, str, int, int, float, float]:
    why = grave.verdict
    times = why.first_attempt_at_ms / 1000, grave.at_ms / 1000
    return grave.id, why.reason, why.detail, why.status, why.attempts, *times


def _born_dead(rows: Iterable[Row]) -> list[Grave]:
    return [Grave(row.id, row.dead, row.accepted_at_ms) for row in rows if row.dead is not None]
