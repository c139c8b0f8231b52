"""The file: persist-queue's table with our columns, our durability and our error texts.

What persist-queue gives is the queue table with its templates, the writing and the reading connection and where they
are kept. Its own put and get are not used: each of them is a transaction, and a queue that deletes up to a cursor
cannot deliver one lane while another waits. We add to its table what a chunk's index entry needs.

    queue_default   _id · timestamp (accepted, Unix seconds) · lane · events · bytes · data (record.py)
    chunks          covering index of all but data, in append order: opens 60,000 chunks in 70 ms
    lanes           id · key · paused: every API key stands on disk once, here
    dead_letters    a mark for a row that stays where it is: why, when, and what upstream said
    meta            what the file knows of itself
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, cast

from persistqueue import SQLiteQueue

from relay.errors import SpoolForeign, SpoolTooNew, StoreBusy, StoreDamaged, StoreFailed, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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

_MAGIC: Final = b"SQLite format 3\0"
_DAMAGE: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class ChunkTable(SQLiteQueue):
    """persist-queue's table and connections, as the relay sets them up."""

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

    def __init__(self, path: Path, *, bytes_max: int, name: str = FILE_NAME) -> None:
        """Open or create `path`/`name`; raises sqlite3.Error."""
        self._file = path.absolute() / name
        self._pages_max = max((bytes_max - WAL_BYTES_MAX) // PAGE_BYTES, 1024)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            super().__init__(
                str(path),
                multithreading=True,  # a connection to write and one to read
                timeout=LOCK_SECONDS,
                auto_commit=False,
                serializer=_RawBytes,
                db_file_name=name,
            )
            self.reader.close()  # it could write, and `abandon` needs one that cannot
            self._getter: Any = self._connect("ro", ())
            undo.pop_all()

    def abandon(self) -> None:
        """Close, and leave the log as it lies.

        A connection that may write brings the log into the file if it is the last to close, and tells nobody where
        that fails; so here the one that may not is the last. `close` has it the other way round.
        """
        self.writer.close()
        self.reader.close()

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
        """Template of an insert: id, accepted (Unix seconds), lane, events, bytes, data."""
        return str(self._sql_insert)

    @property
    def sql_delete(self) -> str:
        """Template of a delete by id, from the first to the last."""
        return self._SQL_DELETE.format(table_name=self._table_name, key_column=self._key_column, op="BETWEEN ? AND")

    def add_schema(self) -> None:
        """Add what is ours to persist-queue's table, where it is absent."""
        with contextlib.closing(self.writer.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                cursor.execute(statement)
            cursor.execute("COMMIT")

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:  # noqa: ARG002, FBT001 – persist-queue's signature
        return self._connect(
            "rwc",
            (
                # First, for others write: SQLite tells nobody of a sync that fails in a checkpoint of its own.
                "wal_autocheckpoint=0",
                f"page_size={PAGE_BYTES}",
                "auto_vacuum=INCREMENTAL",  # holds only before the first table: room goes back in small steps
                "journal_mode=WAL",
                f"synchronous={self.synchronous}",
                "secure_delete=OFF",  # Debian compiles it in: deletes then write 2.7 times their size
                f"journal_size_limit={WAL_BYTES_MAX // 2}",
                f"max_page_count={self._pages_max}",
            ),
        )

    def _connect(self, mode: str, pragmas: Sequence[str]) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._file.as_uri()}?mode={mode}",
            uri=True,
            timeout=LOCK_SECONDS,
            check_same_thread=False,
            isolation_level=None,  # transactions begin and end where we say so
            cached_statements=64,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            for pragma in (*pragmas, "temp_store=MEMORY", "foreign_keys=OFF", "cache_size=-4096", "user_version"):
                connection.execute(f"PRAGMA {pragma}")  # the last one reads: from now on others see it connected
            undo.pop_all()
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


def check_format(file: Path) -> None:
    """Refuse a file that is another program's, or that a later release wrote; nothing is touched.

    SQLite keeps `user_version` at byte 60 and `application_id` at byte 68, big-endian (sqlite.org/fileformat2.html).
    A file that is no SQLite database at all passes: the folder is ours, so it was a queue before its disk failed it.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(100)
    except FileNotFoundError:
        return
    if not header.startswith(_MAGIC):
        return
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION_ID and not (application == 0 and _may_become_ours(file)):
        raise SpoolForeign(f"{file} is not a queue of the relay; move it away, or name another queue.directory")
    if version > FORMAT:
        raise SpoolTooNew(
            f"{file} has format {version}, this release reads up to {FORMAT}; run the newer release again, "
            "or let it drain the queue first. Nothing was touched."
        )


def _may_become_ours(file: Path) -> bool:
    """Tell what a crash left of our first start from another program's tables, persist-queue's own among them."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        try:
            columns = {row[1] for row in connection.execute("PRAGMA table_info(queue_default)")}
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        except sqlite3.DatabaseError:
            return True  # damaged, and then as good as ours
    return tables <= {"queue_default", "sqlite_sequence"} and (not columns or "lane" in columns)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn SQLite's errors and the system's into ours, at the one seam where they appear."""
    try:
        yield
    except OSError as exc:
        raise StoreFailed(f"{doing}: {exc}") from exc
    except sqlite3.Error as exc:
        name = error_name(exc)
        if name == "SQLITE_FULL":
            raise StoreFull(f"{doing}: no room ({exc})") from exc
        if name.startswith("SQLITE_BUSY"):
            raise StoreBusy(f"{doing}: another process holds its lock ({exc})") from exc
        kind = StoreDamaged if name.startswith(_DAMAGE) else StoreFailed
        raise kind(f"{doing}: {name}: {exc}") from exc


def error_name(exc: sqlite3.Error) -> str:
    """SQLite's own name of an error, SQLITE_CORRUPT for example."""
    found: Any = getattr(exc, "sqlite_errorname", None)
    return str(found or type(exc).__name__)
