"""Whether the log hides what was committed, asked before SQLite opens the queue; and what can be saved of it then.

    queue.db ──a second name──► queue.db.frames          SQLite reads these two, and has no write access
    queue.db-wal ──────────────► queue.db.frames-wal     to look: a second name, too; to mend: the whole frames alone

So the queue and its log stay as they are, and with them what tells of the damage, until a salvaged file is complete:
a crash at any moment leaves it all to be done again. SQLite counts the frames that it takes forty times as fast as it
could be done here (measured 2026-11), and a healthy start must not wait for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING

import msgspec

from relay.errors import SpoolError
from relay.spool import salvage
from relay.spool.salvage import FRAMES_NAME, Mended
from relay.spool.table import FILE_NAME, ChunkTable, translated
from relay.spool.wal import HIDDEN_COMMITS_MAX, Known, Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def look(folder: Path) -> str:
    """Say what is wrong with the log, nothing where SQLite may open it; whoever asks holds the folder.

    What a power cut left of the transaction that was under way is cut off, for the next one would be written over the
    first part of it, and the rest would then look like a transaction of later. Raises StoreFailed.
    """
    with translated("looking at the log"), _opened(folder) as log:
        taken = _taken(folder, log) if log.frames and _has_pages(folder) else 0
        if log.is_damaged(taken):
            return _why(log, taken)
        if 0 < log.commits_behind(taken) <= HIDDEN_COMMITS_MAX:
            os.truncate(folder / f"{FILE_NAME}-wal", log.end_of(taken))
    return ""


def read(folder: Path) -> str:
    """Say what is wrong with the log, and touch nothing: for whoever does not hold the folder and has the time.

    Raises StoreFailed.
    """
    with translated("looking at the log"), _opened(folder) as log:
        taken = log.taken() if _has_pages(folder) else 0
        return _why(log, taken) if log.is_damaged(taken) else ""


def mend(
    folder: Path,
    *,
    open_table: Callable[..., ChunkTable] = ChunkTable,
    progress: Callable[[int], None] = lambda _: None,
) -> Mended:
    """Salvage the queue as it stands with all frames that are whole; the file is put aside with its log, as it was.

    Raises StoreFull or StoreFailed where the disk has no room for that: SQLite then goes on with what it takes, and a
    copy of the log is kept where there is room for one.
    """
    try:
        with translated("salvaging the log"), _opened(folder) as log:
            if _has_pages(folder):
                (folder / FRAMES_NAME).hardlink_to(folder / FILE_NAME)
            else:  # SQLite would delete the log of a file that is not there
                salvage.new_table(folder, open_table, FRAMES_NAME).close()
            salvage.make_for_the_owner(folder, f"{FRAMES_NAME}-wal")
            lost = log.rescue(folder / f"{FRAMES_NAME}-wal")
        mended = salvage.mend(folder, name=FRAMES_NAME, open_table=open_table, progress=progress)
    except SpoolError:
        salvage.remove(folder, FRAMES_NAME)
        with contextlib.suppress(OSError):  # there is none, or no room
            _copy_aside(folder)
        raise
    salvage.remove(folder, FRAMES_NAME)
    return msgspec.structs.replace(mended, lost_frames=lost)


def _copy_aside(folder: Path) -> None:
    name = f"{salvage.ASIDE_NAME}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-wal"
    salvage.make_for_the_owner(folder, name)
    shutil.copyfile(folder / f"{FILE_NAME}-wal", folder / name)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Log]:
    """Open the log, or nothing where there is none: its index may still know what is missing."""
    log = folder / f"{FILE_NAME}-wal"
    descriptor = os.open(log if log.exists() else os.devnull, os.O_RDONLY)
    try:
        known = Known.read(folder / f"{FILE_NAME}-shm")
        yield Log(descriptor, known if _has_pages(folder) or not known else msgspec.structs.replace(known, in_file=0))
    finally:
        os.close(descriptor)


def _has_pages(folder: Path) -> bool:
    file = folder / FILE_NAME
    return file.exists() and file.stat().st_size > 0


def _taken(folder: Path, log: Log) -> int:
    """Have SQLite count the frames that it takes, under other names, where the file system has such a thing."""
    try:
        try:
            for companion in ("", "-wal"):
                (folder / f"{FRAMES_NAME}{companion}").hardlink_to(folder / f"{FILE_NAME}{companion}")
        except OSError:
            return log.taken()
        uri = f"{(folder / FRAMES_NAME).absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0)) as connection:
            with contextlib.suppress(sqlite3.DatabaseError):  # the first page may be damaged as well, or locked
                connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
            found = Known.read(folder / f"{FRAMES_NAME}-shm")
            return found.frames if found else log.taken()
    finally:
        salvage.remove(folder, FRAMES_NAME)


def _why(log: Log, taken: int) -> str:
    return f"of the {log.committed()} frames of the log that were committed SQLite would take {taken}"
