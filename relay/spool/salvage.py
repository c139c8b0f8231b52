"""Saves what can be read of a file that is damaged, or that was moved away underneath, into a sound one.

    queue.db ──rows, one range after another──► queue.db.filling ──closed, synced──► queue.db.salvage ──► queue.db
        └──────────────────────────► queue.db.damaged-<time>: kept, for people to look at

Chunks keep their ids. A chunk whose bytes cannot be read and whose index entry can comes over without bytes: the
spool then finds it corrupt and counts its events, as it does with any chunk that fails its checksum. A crash at any
moment leaves either the old file in its place, or the salvaged one complete: `finish` puts it there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from relay.errors import StoreFull
from relay.spool.table import FILE_NAME, PAGE_BYTES, ChunkTable, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILLING_NAME: Final = FILE_NAME + ".filling"
SALVAGE_NAME: Final = FILE_NAME + ".salvage"
"""The name says that it is complete."""
SOURCE_NAME: Final = FILE_NAME + ".source"
"""A copy of a file whose first page is lost, with the first page of a new file in its place."""
FRAMES_NAME: Final = FILE_NAME + ".frames"
"""Another name of the file, beside which lies another log (logcheck.py)."""
ASIDE_NAME: Final = FILE_NAME + ".damaged-"
COMPANIONS: Final = ("-wal", "-shm")
PROBES_MAX: Final = 200_000
"""Failing reads after which a range that cannot be read is given up whole: some seconds' worth."""
COMMIT_BYTES: Final = 8 * 1024 * 1024
_ID_MAX: Final = (1 << 63) - 1
_BYTES_MAX: Final = 1 << 50  # the sound file's own bound is set when it is opened as the queue

_ROWS: Final = (
    "SELECT _id, timestamp, lane, events, bytes, data FROM queue_default NOT INDEXED "
    "WHERE _id > ? AND _id <= ? ORDER BY _id"
)
_ENTRIES: Final = (
    "SELECT _id, timestamp, lane, events, bytes, x'' FROM queue_default INDEXED BY chunks "
    "WHERE _id > ? AND _id <= ? ORDER BY _id"
)
_INSERT: Final = "INSERT OR IGNORE INTO queue_default (_id, timestamp, lane, events, bytes, data) VALUES (?,?,?,?,?,?)"
_LANES: Final = "SELECT id, key, paused FROM lanes WHERE id > ? AND id <= ? ORDER BY id"
_GRAVES: Final = (
    "SELECT chunk, reason, detail, status, attempts, first_attempt_at, died_at FROM dead_letters "
    "WHERE chunk > ? AND chunk <= ? ORDER BY chunk"
)


class Mended(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    aside: str
    """Where the file went; empty where it was gone."""
    chunks: int = 0
    events: int = 0
    """Saved with their bytes."""
    lost_chunks: int = 0
    lost_events: int = 0
    """Known by the index alone."""
    lost_ranges: int = 0
    """Stretches of a table of which nothing can be read, and nobody knows how much there was."""
    lost_frames: int = 0
    """Of a damaged log: pages as a transaction left them; what they held may stand in a later frame too."""
    keyless_lanes: int = 0
    """Lanes whose key is lost; they are paused until an operator gives them another."""
    failure: str = ""
    """Why nothing was saved; the file is aside, as it was."""


def mend(
    folder: Path,
    *,
    name: str = FILE_NAME,
    source: sqlite3.Connection | None = None,
    open_table: Callable[..., ChunkTable] = ChunkTable,
    progress: Callable[[int], None] = lambda _: None,
) -> Mended:
    """Put a sound file in the place of `queue.db`, with what can be read of it, or of `source` where that is open yet.

    Where the disk has no room for a second file, an empty one takes its place and `failure` says so: the relay must
    run. `progress` hears the chunks saved so far. Raises StoreFailed where not even that can be done, and StoreFull
    or StoreFailed where another `name` was to be read instead: then `queue.db` is good enough to run with.
    """
    with translated("salvaging the queue"):
        _discard(folder)
        try:
            mended = _fill(folder, name, source, open_table, progress)
        except (sqlite3.Error, OSError, StoreFull) as exc:
            _discard(folder)
            if name != FILE_NAME:
                raise
            mended = Mended(aside="", failure=str(exc))
            new_table(folder, open_table).close()
        return msgspec.structs.replace(mended, aside=_swap(folder))


def finish(folder: Path) -> None:
    """Complete what a crash cut off: a salvaged file with no queue beside it belongs in its place."""
    if (folder / SALVAGE_NAME).exists() and not (folder / FILE_NAME).exists():
        _put_aside(folder)
        (folder / SALVAGE_NAME).rename(folder / FILE_NAME)
    _discard(folder)
    remove(folder, FRAMES_NAME)


def _fill(
    folder: Path,
    name: str,
    source: sqlite3.Connection | None,
    open_table: Callable[..., ChunkTable],
    progress: Callable[[int], None],
) -> Mended:
    target = new_table(folder, open_table)
    try:
        with contextlib.ExitStack() as closing:
            readable = source or _open_source(folder, name, open_table, closing)
            if readable is None:
                return Mended(aside="", failure="nothing in the file looks like a queue")
            return _copy(readable, target.writer, progress)
    finally:
        target.close()


def _open_source(
    folder: Path, damaged: str, open_table: Callable[..., ChunkTable], closing: contextlib.ExitStack
) -> sqlite3.Connection | None:
    """Open the damaged file as it is, or a copy with a first page that can be read; None where neither helps."""
    for name in (damaged, SOURCE_NAME):
        if name == SOURCE_NAME and not _transplant(folder / damaged, folder / SOURCE_NAME, open_table):
            break
        connection = sqlite3.connect(f"{(folder / name).absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        closing.callback(connection.close)
        with contextlib.suppress(sqlite3.DatabaseError):
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute("SELECT _id, lane FROM queue_default LIMIT 0").fetchall()
            connection.execute("SELECT id FROM lanes LIMIT 0").fetchall()
            return connection
    return None


def _transplant(damaged: Path, copy: Path, open_table: Callable[..., ChunkTable]) -> bool:
    """Give a copy of the file the first page of a new one: in every file of this format it holds the same schema."""
    folder = damaged.parent
    size = damaged.stat().st_size if damaged.exists() else 0
    if size < 2 * PAGE_BYTES or shutil.disk_usage(folder).free < 3 * size:
        return False
    new_table(folder, open_table, copy.name).close()
    first = bytearray(copy.read_bytes()[:PAGE_BYTES])
    first[28:32] = (size // PAGE_BYTES).to_bytes(4, "big")  # pages of the database
    first[32:40] = bytes(8)  # no list of free pages
    shutil.copyfile(damaged, copy)
    with copy.open("r+b") as opened:
        opened.write(first)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(f"{damaged}-wal", f"{copy}-wal")
    return True


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, progress: Callable[[int], None]) -> Mended:
    walk = _Walk(source)
    for sql, insert in (
        (_LANES, "INSERT OR IGNORE INTO lanes (id, key, paused) VALUES (?, ?, ?)"),
        (_GRAVES, "INSERT OR IGNORE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?)"),
    ):
        _insert_all(target, insert, walk.rows(sql), lambda _: None)
    upto = _last_id(source)
    chunks, events = _insert_all(target, _INSERT, filter(_is_chunk, walk.rows(_ROWS, upto)), progress)
    lost_chunks, lost_events = _insert_all(target, _INSERT, filter(_is_chunk, walk.rows(_ENTRIES, upto)), progress)
    with _transaction(target):
        keyless = target.execute(
            "INSERT INTO lanes (id, key, paused) SELECT DISTINCT lane, ? || lane, 1 "
            "FROM queue_default WHERE lane NOT IN (SELECT id FROM lanes)",
            (lost_key(""),),
        ).rowcount
        if upto < _ID_MAX:
            target.execute("DELETE FROM sqlite_sequence WHERE name = 'queue_default'")
            target.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('queue_default', ?)", (upto,))
    return Mended(
        aside="",
        chunks=chunks,
        events=events,
        lost_chunks=lost_chunks,
        lost_events=lost_events,
        lost_ranges=walk.lost_ranges,
        keyless_lanes=keyless,
    )


def lost_key(lane: int | str) -> str:
    """Name what is kept in the place of a lane's key that is lost."""
    return f"lost-key-of-lane-{lane}"


class _Walk:
    """Reads tables by ranges of their key: one that cannot be read is halved, down to the row at fault."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lost_ranges = 0
        self._connection = connection
        self._probes = PROBES_MAX

    def rows(self, sql: str, upto: int = _ID_MAX) -> Iterator[tuple[Any, ...]]:
        """Give every row that can be read, in order; `sql` takes the range's ends, the first is not in it."""
        ranges = [(-1, upto)]
        while ranges:
            low, high = ranges.pop()
            last = low
            try:
                for row in self._connection.execute(sql, (low, high)):
                    last = row[0]
                    yield row
            except sqlite3.DatabaseError:
                self._probes -= 1
                if high - last <= 1 or self._probes < 0:
                    self.lost_ranges += 1
                    continue
                middle = last + (high - last) // 2
                ranges += [(middle, high), (last, middle)]


def _insert_all(
    target: sqlite3.Connection, sql: str, rows: Iterator[tuple[Any, ...]], progress: Callable[[int], None]
) -> tuple[int, int]:
    """Insert row by row in large transactions; gives how many were new, and their events where they are chunks."""
    inserted = events = 0
    more = True
    while more:
        more, size = False, 0
        with _transaction(target):
            for row in rows:
                if target.execute(sql, row).rowcount:
                    inserted += 1
                    events += row[3] if sql == _INSERT else 0
                size += 128 + (len(row[5]) if sql == _INSERT else 0)
                if size >= COMMIT_BYTES:
                    more = True
                    break
        progress(inserted)
    return inserted, events


@contextlib.contextmanager
def _transaction(target: sqlite3.Connection) -> Iterator[None]:
    target.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if target.in_transaction:
            target.execute("ROLLBACK")
        raise
    target.execute("COMMIT")
    target.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # the one at closing tells nobody where it fails


def _last_id(source: sqlite3.Connection) -> int:
    """The highest id ever given, as far as it can be read."""
    found = 0
    for sql in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'queue_default'",
        "SELECT MAX(_id) FROM queue_default NOT INDEXED",
        "SELECT _id FROM queue_default INDEXED BY chunks ORDER BY _id DESC LIMIT 1",
    ):
        with contextlib.suppress(sqlite3.DatabaseError):
            for (value,) in source.execute(sql):
                found = max(found, value if isinstance(value, int) else 0)
    return found or _ID_MAX


def _is_chunk(row: tuple[Any, ...]) -> bool:
    """Whether a row has the types of a chunk: a damaged page may hold anything."""
    chunk, at, *numbers, data = row
    whole = all(isinstance(number, int) and 0 <= number < 1 << 32 for number in numbers)
    return whole and chunk > 0 and isinstance(at, float) and isinstance(data, bytes)


def new_table(folder: Path, open_table: Callable[..., ChunkTable], name: str = FILLING_NAME) -> ChunkTable:
    """Make an empty queue under that name."""
    make_for_the_owner(folder, name)
    table = open_table(folder, bytes_max=_BYTES_MAX, name=name)
    table.add_schema()
    return table


def make_for_the_owner(folder: Path, name: str) -> None:
    """Make an empty file that is the folder's owner's alone: root may mend what another user's relay has to open."""
    owner = folder.stat()
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def _swap(folder: Path) -> str:
    """Move the old file aside and the filled one into its place; `finish` completes it from any step on."""
    _sync(folder / FILLING_NAME)
    (folder / FILLING_NAME).rename(folder / SALVAGE_NAME)
    aside = _put_aside(folder)
    (folder / SALVAGE_NAME).rename(folder / FILE_NAME)
    _sync(folder)
    return aside


def _put_aside(folder: Path) -> str:
    """Give the old file another name, and then its log, which must never meet a new file: SQLite would apply it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    while any(folder.glob(f"{ASIDE_NAME}{stamp}*")):
        stamp += "+"
    names = [companion for companion in ("", *COMPANIONS) if (folder / f"{FILE_NAME}{companion}").exists()]
    for companion in names:
        (folder / f"{FILE_NAME}{companion}").rename(folder / f"{ASIDE_NAME}{stamp}{companion}")
        _sync(folder)
    return f"{ASIDE_NAME}{stamp}" if "" in names else ""


def _discard(folder: Path) -> None:
    """Remove what an attempt that was cut off has left."""
    for name in (FILLING_NAME, SALVAGE_NAME, SOURCE_NAME):
        remove(folder, name)


def remove(folder: Path, name: str) -> None:
    """Remove a file and what SQLite keeps beside it."""
    for companion in ("", "-journal", *COMPANIONS):
        (folder / f"{name}{companion}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
