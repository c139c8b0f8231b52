"""The queue's file for whoever only looks: read-only, a hundred rows at a time, and no harm to a relay that is busy.

An open cursor keeps SQLite from reusing its log, which then grows without bound (404 MiB over 4 MiB of live events,
measured 2026-11). So every statement here ends before its rows are handed on, and whoever prints them may take long.
What is delivered meanwhile is simply gone; what comes in after `last_id` was asked is not meant.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from relay.errors import ChunkCorrupt, SpoolError
from relay.spool import letters
from relay.spool.folder import FOLDER_NAME
from relay.spool.record import Chunk, decode
from relay.spool.store import Entry, LaneRow, lane_row
from relay.spool.table import FILE_NAME, LOCK_SECONDS, PAGE_BYTES, READ_ROWS_MAX, check_format, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from relay.spool.letters import Choice, DeadLetter

READ_BYTES_MAX: Final = 4 << 20
"""Bodies held at a time; one larger chunk is held alone."""
SPAN: Final = 100_000
"""Ids summed up in one statement: some 10 ms."""
_NOT_DEAD: Final = "NOT EXISTS (SELECT 1 FROM dead_letters WHERE chunk = q._id)"


class NoQueue(SpoolError):
    """There is no queue in the folder."""


class LaneTotals(msgspec.Struct, frozen=True):
    """What a lane holds that is not dead."""

    lane: int
    chunks: int
    events: int
    bytes: int
    oldest_accepted_at_ms: int


class Files(msgspec.Struct, frozen=True):
    """What the queue takes on disk, in bytes."""

    database_bytes: int
    free_bytes: int
    """Of the database, empty: the next events go there."""
    log_bytes: int
    damaged_bytes: int
    """Files that were set aside when they were found damaged."""


class Reader:
    """A look at the queue in `directory`; use it as a context manager. Methods raise SpoolError."""

    def __init__(self, directory: Path) -> None:
        """Open the file, and refuse what is not ours or too new; raises NoQueue where there is none."""
        self.folder = directory / FOLDER_NAME
        self.file = self.folder / FILE_NAME
        try:
            found = self.file.exists()
            check_format(self.file)
        except PermissionError as exc:
            raise SpoolError(f"{exc.filename} is not yours to read; try it as the user that runs the relay") from exc
        if not found:
            raise NoQueue(f"there is no queue in {directory} yet; is queue.directory the relay's? See --config")
        with translated(f"opening {self.file}"):
            self._connection = sqlite3.connect(
                f"{self.file.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS, isolation_level=None
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def lanes(self) -> list[LaneRow]:
        """Every lane with its key: whoever prints one prints its fingerprint."""
        return [lane_row(*row) for row in self.select("SELECT id, key, paused FROM lanes ORDER BY id")]

    def last_id(self) -> int:
        """The highest id now."""
        ((last,),) = self.select("SELECT COALESCE(MAX(_id), 0) FROM queue_default NOT INDEXED")
        return int(last)

    def totals(self) -> list[LaneTotals]:
        """What lies in each lane and is not dead."""
        found: dict[int, LaneTotals] = {}
        for after in range(0, self.last_id(), SPAN):
            rows = self.select(
                "SELECT q.lane, COUNT(*), SUM(q.events), SUM(q.bytes), CAST(ROUND(MIN(q.timestamp) * 1000) AS INTEGER) "  # noqa: S608 – constants alone
                f"FROM queue_default AS q INDEXED BY chunks WHERE q._id > ? AND q._id <= ? AND {_NOT_DEAD} "
                "GROUP BY q.lane",
                after,
                after + SPAN,
            )
            for lane, chunks, events, size, oldest in rows:
                had = found.get(lane, LaneTotals(lane, 0, 0, 0, oldest))
                found[lane] = LaneTotals(
                    lane,
                    had.chunks + chunks,
                    had.events + events,
                    had.bytes + size,
                    min(had.oldest_accepted_at_ms, oldest),
                )
        return list(found.values())

    def dead_totals(self, choice: Choice) -> list[tuple[int, str, int, int, int, int]]:
        """The chosen dead letters: (lane, reason, letters, events, bytes, Unix ms of the oldest's death) each."""
        return letters.count(self.select, choice, upto=self.last_id())

    def files(self) -> Files:
        """What it takes on disk."""
        (pages,), (free,) = self.select("PRAGMA page_count")[0], self.select("PRAGMA freelist_count")[0]
        sizes = {}
        with contextlib.suppress(FileNotFoundError):
            sizes = {file.name: file.stat().st_size for file in self.folder.iterdir()}
        return Files(
            database_bytes=pages * PAGE_BYTES,
            free_bytes=free * PAGE_BYTES,
            log_bytes=sizes.get(FILE_NAME + "-wal", 0),
            damaged_bytes=sum(size for name, size in sizes.items() if name.startswith(FILE_NAME + ".damaged")),
        )

    def entries(self, lanes: tuple[int, ...] | None = None) -> Iterator[list[Entry]]:
        """The live chunks by id, some at a time; of some lanes, or of all."""
        wanted = "" if lanes is None else f"AND q.lane IN ({','.join(map(str, lanes)) or 'NULL'})"
        sql = (
            "SELECT q._id, q.lane, q.events, q.bytes, CAST(ROUND(q.timestamp * 1000) AS INTEGER) "  # noqa: S608 – numbers alone
            "FROM queue_default AS q INDEXED BY chunks "
            f"WHERE q._id > ? AND q._id <= ? AND {_NOT_DEAD} {wanted} ORDER BY q._id LIMIT {READ_ROWS_MAX}"
        )
        last, upto = 0, self.last_id()
        while last < upto:
            page = [Entry(*row) for row in self.select(sql, last, min(last + SPAN, upto))]
            last = page[-1].id if len(page) == READ_ROWS_MAX else min(last + SPAN, upto)
            if page:
                yield page

    def dead_letters(self, choice: Choice) -> Iterator[list[DeadLetter]]:
        """The chosen dead letters by id, some at a time."""
        last, upto = 0, self.last_id()
        while page := letters.select(self.select, choice, after=last, upto=upto, limit=READ_ROWS_MAX):
            yield page
            last = page[-1].id

    def chunks(self, wanted: Sequence[Entry | DeadLetter]) -> Iterator[Chunk | ChunkCorrupt]:
        """Read bodies, a few megabytes at a time; those gone meanwhile are left out, the unreadable say why."""
        start = 0
        while start < len(wanted):
            end, size = start, 0
            while end < len(wanted) and (end == start or size + wanted[end].bytes <= READ_BYTES_MAX):
                size += wanted[end].bytes
                end += 1
            ids = [one.id for one in wanted[start:end]]
            marks = ",".join("?" * len(ids))
            rows = self.select(f"SELECT _id, lane, data FROM queue_default WHERE _id IN ({marks}) ORDER BY _id", *ids)  # noqa: S608 – marks alone
            for row in rows:
                try:
                    yield decode(*row)
                except ChunkCorrupt as exc:
                    yield exc
            start = end

    def select(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement to its end."""
        with translated(f"reading {self.file}"):
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def one_moment(self) -> Iterator[None]:
        """See one state of the queue in all statements of the block; keep it short."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")
