"""The disk: one SQLite file, written and read; blocking, and the only file that knows persist-queue and SQL.

What persist-queue gives is the queue table with its templates, the writing and the reading connection and where they
are kept. Its own put and get are not used: each of them is a transaction, and a queue that deletes up to a cursor
cannot deliver one lane while another waits. We add to its table what a chunk's index entry needs, and write many rows,
and delete many, in one transaction.

    queue_default   _id · timestamp (accepted, Unix seconds) · lane · events · bytes · data (record.py)
    chunks          covering index of all but data, in append order: opens 60,000 chunks in 70 ms
    lanes           id · key: every API key stands on disk once, here
    dead_letters    a mark for a row that stays where it is: why, when, and what upstream said
    meta            what the file knows of itself

One thread may commit while another reads; `close` and `reopen` wait for both.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from persistqueue import SQLiteQueue

from relay.errors import SpoolForeign, SpoolTooNew, StoreFailed, StoreFull
from relay.spool.record import Verdict  # noqa: TC001 – msgspec reads it when a Struct is decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

FILE_NAME: Final = "queue.db"
APPLICATION_ID: Final = 0x45565252  # "EVRR"
FORMAT: Final = 1
"""`user_version` of the file. Format N stays readable by the release before the one that brought it."""

PAGE_BYTES: Final = 4096
WAL_BYTES_MAX: Final = 32 * 1024 * 1024
"""Kept free of `bytes_max` for the write-ahead log: one commit of 8 MiB, the next, and what a reader holds back."""
LOCK_SECONDS: Final = 1.0
"""How long a statement waits for a reader of another process."""
READ_ROWS_MAX: Final = 100
"""Rows in one SELECT of bodies: an open cursor holds the log from being checkpointed."""


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


class Usage(msgspec.Struct, frozen=True):
    """Pages of the file: in use, and free for the next rows."""

    used_bytes: int
    free_bytes: int


class Changes(msgspec.Struct):
    """What one transaction does."""

    lanes: list[tuple[int, str]] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    deletes: list[int] = msgspec.field(default_factory=list)
    graves: list[Grave] = msgspec.field(default_factory=list)
    forgotten_lanes: list[int] = msgspec.field(default_factory=list)


class ChunkTable(SQLiteQueue):
    """persist-queue's table and connections, with our columns, our durability and our error texts."""

    synchronous = "FULL"
    """NORMAL would answer before the log is on the disk; the power-loss test proves that it loses."""

    _SQL_CREATE = (
        "CREATE TABLE IF NOT EXISTS {table_name} ("
        "{key_column} INTEGER PRIMARY KEY AUTOINCREMENT, timestamp FLOAT NOT NULL, lane INTEGER NOT NULL, "
        "events INTEGER NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL)"
    )
    _SQL_INSERT = (
        "INSERT INTO {table_name} ({key_column}, timestamp, lane, events, bytes, data) VALUES (?, ?, ?, ?, ?, ?)"
    )
    _SQL_DELETE = "DELETE FROM {table_name} WHERE {key_column} {op} ?"

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self._pages_max = max((bytes_max - WAL_BYTES_MAX) // PAGE_BYTES, 1024)
        super().__init__(
            str(path),
            multithreading=True,  # a connection to write and one to read
            timeout=LOCK_SECONDS,
            auto_commit=False,
            serializer=_RawBytes,
            db_file_name=FILE_NAME,
        )

    @property
    def writer(self) -> sqlite3.Connection:
        """The connection that commits."""
        return cast("sqlite3.Connection", self._putter)

    @property
    def reader(self) -> sqlite3.Connection:
        """The connection that reads."""
        return cast("sqlite3.Connection", self._getter)

    @property
    def sql_insert(self) -> str:
        """Template of an insert, in the order of Row's fields as `_row_values` lays them."""
        return str(self._sql_insert)

    @property
    def sql_delete(self) -> str:
        """Template of a delete by id."""
        return self._SQL_DELETE.format(table_name=self._table_name, key_column=self._key_column, op="=")

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:  # noqa: FBT001 – persist-queue's signature
        connection = sqlite3.connect(
            f"{path}/{self.db_file_name}",
            timeout=timeout,
            check_same_thread=not multithreading,
            isolation_level=None,  # transactions begin and end where we say so
            cached_statements=64,
        )
        for pragma in (
            f"page_size={PAGE_BYTES}",
            "auto_vacuum=INCREMENTAL",  # holds only before the first table: room goes back to the disk in small steps
            "journal_mode=WAL",
            f"synchronous={self.synchronous}",
            "secure_delete=OFF",  # Debian compiles it in: deletes then write 2.7 times their size
            "temp_store=MEMORY",
            f"journal_size_limit={WAL_BYTES_MAX // 2}",
            f"max_page_count={self._pages_max}",
            "foreign_keys=OFF",
            "cache_size=-4096",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _count(self) -> int:
        return 0  # `total` is not used; counting would read the whole index at every start


class _RawBytes:
    """Serializer of persist-queue's own put and get, for whoever opens the file with them."""

    @staticmethod
    def dumps(value: bytes) -> bytes:
        return value

    @staticmethod
    def loads(value: bytes) -> bytes:
        return value


_CREATE_LANES: Final = (
    "CREATE TABLE IF NOT EXISTS lanes (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, "
    "paused INTEGER NOT NULL DEFAULT 0)"
)
_CREATE_DEAD_LETTERS: Final = (
    "CREATE TABLE IF NOT EXISTS dead_letters (chunk INTEGER PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL, "
    "status INTEGER NOT NULL, attempts INTEGER NOT NULL, first_attempt_at FLOAT NOT NULL, died_at FLOAT NOT NULL)"
)
_SCHEMA: Final = (
    "CREATE UNIQUE INDEX IF NOT EXISTS chunks ON queue_default (_id, lane, events, bytes, timestamp)",
    _CREATE_LANES,
    _CREATE_DEAD_LETTERS,
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id={APPLICATION_ID}",
    f"PRAGMA user_version={FORMAT}",
)
_INSERT_GRAVE: Final = (
    "INSERT OR REPLACE INTO dead_letters (chunk, reason, detail, status, attempts, first_attempt_at, died_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
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
        check_format(path / FILE_NAME)
        self._table = self._open()

    @property
    def capacity_bytes(self) -> int:
        """What live pages may come to: `bytes_max` without the write-ahead log's share."""
        return self._bytes_max - WAL_BYTES_MAX

    def reopen(self) -> None:
        """Close what is open and open it anew: after a failed commit nothing in memory can be trusted."""
        with self._reading:
            with contextlib.suppress(sqlite3.Error):
                self._table.close()
            self._table = self._open()

    def close(self) -> None:
        """Checkpoint the log into the file and close it."""
        with self._reading, _translated("closing the queue"):
            self._table.close()

    def commit(self, changes: Changes) -> None:
        """Do all of it in one transaction and return when it is on the disk.

        Raises StoreFull or StoreFailed; then none of it was done, save that after StoreFailed it may appear once the
        store is reopened.
        """
        table, writer = self._table, self._table.writer
        with _translated("committing"):
            writer.execute("BEGIN IMMEDIATE")
            try:
                if changes.lanes:
                    writer.executemany("INSERT OR IGNORE INTO lanes (id, key) VALUES (?, ?)", changes.lanes)
                if changes.rows:
                    writer.executemany(table.sql_insert, map(_row_values, changes.rows))
                if changes.deletes:
                    writer.executemany(table.sql_delete, [(chunk,) for chunk in changes.deletes])
                graves = changes.graves + _born_dead(changes.rows)
                if graves:
                    writer.executemany(_INSERT_GRAVE, map(_grave_values, graves))
                if changes.forgotten_lanes:
                    writer.executemany("DELETE FROM lanes WHERE id = ?", [(lane,) for lane in changes.forgotten_lanes])
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:  # SQLite rolls back by itself on FULL and IOERR
                    writer.execute("ROLLBACK")
                raise

    def prove(self) -> None:
        """Commit something small, to learn whether the disk takes it."""
        with _translated("trying the disk"):
            self._table.writer.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('proved', datetime('now'))")

    def usage(self) -> Usage:
        """Pages in use and free; for the committing thread, from the page cache."""
        with _translated("counting pages"):
            (pages,) = self._table.writer.execute("PRAGMA page_count").fetchone()
            (free,) = self._table.writer.execute("PRAGMA freelist_count").fetchone()
        return Usage(used_bytes=(pages - free) * PAGE_BYTES, free_bytes=free * PAGE_BYTES)

    def give_back(self, pages: int) -> None:
        """Return some free pages to the file system; for the committing thread."""
        with _translated("shrinking the file"):
            self._table.writer.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def last_id(self) -> int:
        """The highest id ever given, 0 in a new file."""
        rows = self._select("SELECT seq FROM sqlite_sequence WHERE name = 'queue_default'")
        return int(rows[0][0]) if rows else 0

    def lanes(self) -> list[tuple[int, str]]:
        """Every lane's id and key."""
        return self._select("SELECT id, key FROM lanes ORDER BY id")

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

    def dead_totals(self) -> tuple[int, int]:
        """Events and bytes that lie as dead letters."""
        ((events, size),) = self._select(
            "SELECT COALESCE(SUM(q.events), 0), COALESCE(SUM(q.bytes), 0) FROM dead_letters AS d "
            "JOIN queue_default AS q INDEXED BY chunks ON q._id = d.chunk"
        )
        return events, size

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
        with _translated(f"opening {self._path / FILE_NAME}"):
            table = self._open_table(self._path, bytes_max=self._bytes_max)
            with contextlib.closing(table.writer.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    cursor.execute(statement)
                cursor.execute("COMMIT")
        for file in self._path.glob(FILE_NAME + "*"):
            file.chmod(0o600)
        return table

    def _select(self, sql: str, *values: Any) -> list[Any]:
        with self._reading, _translated("reading the queue"):
            return self._table.reader.execute(sql, values).fetchall()


def check_format(file: Path) -> None:
    """Refuse a file that is not ours, or that a later release wrote, by its header alone: nothing is opened or touched.

    SQLite keeps `user_version` at byte 60 and `application_id` at byte 68, big-endian (sqlite.org/fileformat2.html).
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(100)
    except FileNotFoundError:
        return
    if not header.strip(b"\0"):
        return  # made by a start that was cut off before its first commit
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if not header.startswith(b"SQLite format 3\0") or application not in (0, APPLICATION_ID):
        raise SpoolForeign(f"{file} is not a queue of the relay; move it away, or name another queue.directory")
    if version > FORMAT:
        raise SpoolTooNew(
            f"{file} has format {version}, this release reads up to {FORMAT}; run the newer release again, "
            "or let it drain the queue first. Nothing was touched."
        )


def _row_values(row: Row) -> tuple[int, float, int, int, int, bytes]:
    return row.id, row.accepted_at_ms / 1000, row.lane, row.events, len(row.data), row.data


def _grave_values(grave: Grave) -> tuple[int, str, str, int, int, float, float]:
    why = grave.verdict
    times = why.first_attempt_at_ms / 1000, grave.at_ms / 1000
    return grave.id, why.reason, why.detail, why.status, why.attempts, *times


def _born_dead(rows: Iterable[Row]) -> list[Grave]:
    return [Grave(row.id, row.dead, row.accepted_at_ms) for row in rows if row.dead is not None]


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn SQLite's errors into ours, at the one seam where they appear."""
    try:
        yield
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        if name == "SQLITE_FULL":
            raise StoreFull(f"{doing}: no room ({exc})") from exc
        raise StoreFailed(f"{doing}: {name}: {exc}") from exc
