"""`relay queue compact` and `relay queue repair`: work on the file itself, while no relay runs."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Final

import msgspec

from relay.admin.units import count, events, size
from relay.commands.common import load_config
from relay.commands.queue_tools import common
from relay.commands.queue_tools.progress import ProgressLine
from relay.commands.queue_tools.verifying import check
from relay.errors import SpoolError, StoreDamaged
from relay.spool import logcheck, salvage
from relay.spool.folder import FOLDER_NAME, hold
from relay.spool.reader import NoQueue, Reader
from relay.spool.table import FILE_NAME, PAGE_BYTES, ChunkTable, check_format, translated

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

WORTH_BYTES: Final = 1 << 20
"""Less than this is not worth a write."""
STEP_PAGES: Final = 2048
VACUUM_SHARE_MAX: Final = 0.5
"""VACUUM writes all that is in use once more: it pays where that is at most this share of the file, and where it fits
on the disk beside it. Else the free pages are given back one by one, which leaves the rest where it is."""


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    """What `queue compact --json` prints."""

    before_bytes: int
    after_bytes: int
    method: str
    """none · vacuum · incremental"""


def compact(arguments: argparse.Namespace) -> int:
    """Give free room inside the file back to the disk."""
    with _held(arguments) as folder, translated("compacting the queue"):
        if damage := logcheck.look(folder):
            raise StoreDamaged(damage)
        table = ChunkTable(folder, bytes_max=load_config(arguments).queue.bytes_max)
        try:
            done = _compact(folder, table)
        finally:
            table.close()
    if arguments.json:
        common.print_json(done)
    elif done.method == "none":
        print(f"The file has {size(done.after_bytes)} and little room to give back; nothing was done.")
    else:
        print(f"From {size(done.before_bytes)} to {size(done.after_bytes)}.")
    return 0


def _compact(folder: Path, table: ChunkTable) -> Compacted:
    writer = table.writer
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    before, free = (writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    in_use = before - free
    method = "none"
    if free * PAGE_BYTES >= WORTH_BYTES:
        fits = shutil.disk_usage(folder).free > 2 * in_use * PAGE_BYTES
        method = "vacuum" if in_use <= before * VACUUM_SHARE_MAX and fits else "incremental"
        with ProgressLine("compacting", free) as line:
            if method == "vacuum":
                writer.execute("VACUUM")
            else:
                for done in range(0, free, STEP_PAGES):
                    writer.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")  # execute() would do one page
                    writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # or the log grows with every step
                    line.at(done)
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (after,) = writer.execute("PRAGMA page_count").fetchone()
    return Compacted(before_bytes=before * PAGE_BYTES, after_bytes=after * PAGE_BYTES, method=method)


def repair(arguments: argparse.Namespace) -> int:
    """Save what can be read into a new file; 1 where something could not be."""
    with _held(arguments) as folder:
        check_format(folder / FILE_NAME)
        salvage.finish(folder)
        log_damaged = logcheck.look(folder)
        chunks = None if log_damaged else _chunks_if_sound(arguments)
        if chunks is not None and not arguments.force:
            print(f"{folder / FILE_NAME} is sound, {count(chunks)} chunks; nothing was done (--force does it anyway).")
            return 0
        with ProgressLine("salvaging", chunks or 0) as line:
            mended = (logcheck if log_damaged else salvage).mend(folder, progress=line.at)
    if arguments.json:
        common.print_json(mended)
    else:
        _print(folder, mended)
    lost = mended.lost_chunks or mended.lost_ranges or mended.lost_frames or mended.keyless_lanes
    return 1 if mended.failure or lost else 0


def _chunks_if_sound(arguments: argparse.Namespace) -> int | None:
    """How many chunks there are where nothing is wrong with any, nor with the file; None where something is."""
    try:
        with common.open_reader(arguments) as reader:
            found = check(reader, whole=True)
    except SpoolError:
        return None
    return None if found.problems else found.chunks


def _print(folder: Path, mended: salvage.Mended) -> None:
    if mended.failure:
        print(f"Nothing was saved: {mended.failure}. The queue is empty now.")
    else:
        print(f"Saved: {events(mended.events)} in {count(mended.chunks)} chunks.")
    if mended.lost_chunks:
        print(
            f"Lost: {events(mended.lost_events)} in {count(mended.lost_chunks)} chunks; the index knows of them and "
            "nothing else does. The relay will count them as dead letters, reason corrupt."
        )
    if mended.lost_ranges:
        print(f"{count(mended.lost_ranges)} stretches of the file could not be read; what lay there is not known.")
    if mended.lost_frames:
        print(
            f"{count(mended.lost_frames)} frames of the log could not be read, each of them a page as a transaction "
            "had left it; what they held may have been saved from others."
        )
    if mended.keyless_lanes:
        print(
            f"{count(mended.keyless_lanes)} lanes have lost their key and are paused: `relay queue lanes`, then "
            "`relay queue rekey LANE` and `relay queue resume LANE`."
        )
    print(f"The old file is {folder / mended.aside}; delete it when you need it no more.")


@contextlib.contextmanager
def _held(arguments: argparse.Namespace) -> Iterator[Path]:
    """Take the folder's lock; raises SpoolLocked where a relay runs, NoQueue where there is none."""
    directory = common.directory_of(arguments)
    common.quiet_logs()
    if not (directory / FOLDER_NAME).is_dir():
        with Reader(directory):
            raise NoQueue(f"there is no queue in {directory}")
    folder = hold(directory)
    try:
        yield folder.path
    finally:
        folder.close()
