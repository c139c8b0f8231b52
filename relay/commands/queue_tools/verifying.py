"""`relay queue verify`: every chunk against its checksums, its index entry and its lane; the file against SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from relay.admin.units import count, events
from relay.commands.queue_tools import common
from relay.commands.queue_tools.progress import ProgressLine
from relay.errors import ChunkCorrupt, SpoolError
from relay.spool import logcheck
from relay.spool.folder import holder_of
from relay.spool.reader import READ_BYTES_MAX
from relay.spool.record import decode
from relay.spool.table import READ_ROWS_MAX

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from relay.spool.reader import Reader

PROBLEMS_SHOWN_MAX: Final = 50
SMALL_BYTES: Final = 64 << 20
"""SQLite's own check of so large a file takes about a tenth of a second, too short to hold up a busy relay's log."""

_ENTRIES: Final = (
    "SELECT _id, lane, events, bytes, timestamp FROM queue_default INDEXED BY chunks "
    "WHERE _id > ? AND _id <= ? ORDER BY _id LIMIT ?"
)
_ROWS: Final = (
    "SELECT _id, lane, events, bytes, timestamp, data FROM queue_default NOT INDEXED "
    "WHERE _id > ? AND _id <= ? ORDER BY _id LIMIT ?"
)
_ORPHANS: Final = (
    "SELECT chunk FROM dead_letters WHERE NOT EXISTS (SELECT 1 FROM queue_default WHERE _id = chunk) LIMIT 50"
)
_Row = tuple[int, int, int, int, float, bytes]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What `queue verify --json` prints."""

    chunks: int
    events: int
    problems: tuple[str, ...]
    file_checked: bool
    """SQLite's own check ran; beside a relay, a large file is left out, for the check would hold up its log."""
    log_damaged: bool = False
    """Nothing else was looked at: SQLite would write over what tells how much is missing."""


def verify(arguments: argparse.Namespace) -> int:
    """Check everything; 1 where something is wrong."""
    with common.open_reader(arguments) as reader:
        found = _check_log(reader, arguments) or check(reader, whole=_may_check_whole(reader, arguments))
    if arguments.json:
        common.print_json(found)
    else:
        _print(found)
    return 1 if found.problems else 0


def _may_check_whole(reader: Reader, arguments: argparse.Namespace) -> bool:
    if arguments.full or reader.files().database_bytes <= SMALL_BYTES:
        return True
    return holder_of(common.directory_of(arguments)) is None


def _check_log(reader: Reader, arguments: argparse.Namespace) -> Verified | None:
    """Look for what the log hides from SQLite, before SQLite reads it; a relay that runs has done so at its start."""
    if holder_of(common.directory_of(arguments)) is not None:
        return None
    damage = logcheck.read(reader.folder)
    if not damage:
        return None
    return Verified(chunks=0, events=0, problems=(damage,), file_checked=False, log_damaged=True)


def check(reader: Reader, *, whole: bool) -> Verified:
    """Check every chunk, and with `whole` the file by SQLite's own means too."""
    problems: list[str] = []
    chunks = total = 0
    try:
        lanes = {lane.number for lane in reader.lanes()}
        with ProgressLine("verifying", reader.last_id()) as line:
            for pages in _pages(reader):
                for row in pages.rows:
                    chunks += 1
                    total += row[2]
                    problems += _check_row(row, lanes)
                problems += pages.differences()
                line.at(pages.last)
        problems += _check_marks(reader)
        problems += _check_file(reader) if whole else []
    except SpoolError as exc:
        problems.append(f"reading ended here: {exc}")
    return Verified(chunks=chunks, events=total, problems=tuple(problems), file_checked=whole)


class _Page(msgspec.Struct):
    """Some chunks as the index and as the table has them, at one moment."""

    entries: list[tuple[int, int, int, int, float]]
    rows: list[_Row]
    last: int

    def differences(self) -> list[str]:
        """What one knows and the other does not."""
        by_index, by_table = set(self.entries), {row[:5] for row in self.rows}
        return [
            f"chunk {entry[0]} is in the index and not, or not so, in the table" for entry in by_index - by_table
        ] + [f"chunk {row[0]} is in the table and not, or not so, in the index" for row in by_table - by_index]


def _pages(reader: Reader) -> Iterator[_Page]:
    """Give all chunks, a few megabytes at a time; each page in a transaction of its own."""
    last, upto = 0, reader.last_id()
    while last < upto:
        with reader.one_moment():
            entries = _fitting(reader.select(_ENTRIES, last, upto, READ_ROWS_MAX))
            end = entries[-1][0] if entries else upto
            rows = reader.select(_ROWS, last, end, READ_ROWS_MAX + 1)
        if len(rows) > READ_ROWS_MAX:  # the index lacks some: go by the table
            rows = rows[:READ_ROWS_MAX]
            end = rows[-1][0]
            entries = [entry for entry in entries if entry[0] <= end]
        yield _Page(entries, rows, end)
        last = end


def _fitting(entries: list[tuple[int, int, int, int, float]]) -> list[tuple[int, int, int, int, float]]:
    size = 0
    for at, entry in enumerate(entries):
        size += entry[3]
        if at and size > READ_BYTES_MAX:
            return entries[:at]
    return entries


def _check_row(row: _Row, lanes: set[int]) -> Iterator[str]:
    number, lane, number_of_events, size, _, data = row
    try:
        chunk = decode(number, lane, data)
        chunk.text()
    except ChunkCorrupt as exc:
        yield str(exc)
        return
    if chunk.events != number_of_events:
        yield f"chunk {number} holds {chunk.events} events, its row says {number_of_events}"
    if len(data) != size:
        yield f"chunk {number} has {len(data)} bytes, its row says {size}"
    if lane not in lanes:
        yield f"chunk {number} is of lane {lane}, whose key is not there"


def _check_marks(reader: Reader) -> Iterator[str]:
    for (chunk,) in reader.select(_ORPHANS):
        yield f"chunk {chunk} is marked as a dead letter and is not in the table"


def _check_file(reader: Reader) -> Iterator[str]:
    for (text,) in reader.select(f"PRAGMA integrity_check({PROBLEMS_SHOWN_MAX})"):
        if text != "ok":
            yield f"SQLite: {text}"


def _print(found: Verified) -> None:
    for problem in found.problems[:PROBLEMS_SHOWN_MAX]:
        print(common.printable(problem))
    if len(found.problems) > PROBLEMS_SHOWN_MAX:
        print(f"… and {count(len(found.problems) - PROBLEMS_SHOWN_MAX)} more")
    print(f"{count(found.chunks)} chunks with {events(found.events)} read, ", end="")
    print(f"{count(len(found.problems))} problems." if found.problems else "all of them sound.")
    if not found.file_checked and not found.log_damaged:
        print("SQLite's own check was left out, for a relay runs and the file is large: --full runs it all the same.")
    if found.problems:
        print(
            "A relay sets bad chunks aside by itself and delivers the rest. To salvage the file: stop the relay, "
            "`relay queue repair`, start it."
        )
