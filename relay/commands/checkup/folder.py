"""The queue's folder: whose it is, what it lies on, how fast that syncs, and how much fits."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Final

from relay.admin.units import size
from relay.commands.checkup.finding import Finding, fail, ok, warn
from relay.spool.folder import FOLDER_NAME, NETWORK, VOLATILE, file_system_of, holder_of, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from relay.config import Config

SYNCS: Final = 12
SYNC_BYTES: Final = 4096
SLOW_SECONDS: Final = 0.05
"""A commit waits for one or two syncs; apps wait for a commit. A disk of a cloud takes 1 to 5 ms."""
UNUSABLE_SECONDS: Final = 1.0
"""Answers are due within five seconds."""


def check_folder(config: Config) -> Iterator[Finding]:
    """Everything about the folder; makes nothing but a small file, which it removes."""
    directory = config.queue.directory
    base = nearest(directory)
    yield from _rights(directory, base)
    yield judge_file_system(file_system_of(base), base)
    yield _holder(directory)
    yield _sync(directory / FOLDER_NAME if (directory / FOLDER_NAME).is_dir() else base)
    yield _space(config, base)


def _rights(directory: Path, base: Path) -> Iterator[Finding]:
    if not os.access(base, os.W_OK | os.X_OK):
        yield fail(
            "folder",
            f"{base} is not writable for user {os.geteuid()}",
            f"run this as the relay's user, or: chown it to that user; queue.directory is {directory}",
        )
        return
    folder = directory / FOLDER_NAME
    if not folder.is_dir():
        yield ok("folder", f"{folder} will be made by the first start")
        return
    try:
        wrong = [path for path in (folder, *folder.iterdir()) if path.stat().st_mode & 0o077]
    except PermissionError:
        yield fail("folder", f"{folder} is another user's", "run this, and the relay, as the user that owns it")
        return
    if wrong:
        yield warn(
            "folder",
            f"others than its owner may read {', '.join(str(path) for path in wrong[:3])}: API keys are in there",
            f"chmod -R go= {folder}",
        )
    elif folder.stat().st_uid != os.geteuid():
        yield warn("folder", f"{folder} belongs to user {folder.stat().st_uid}", "run the relay as that user")
    else:
        yield ok("folder", f"{folder} is its owner's alone")


def judge_file_system(kind: str, base: Path) -> Finding:
    """Say whether a file system of this type keeps the promise; pure."""
    if kind in NETWORK:
        return fail(
            "file system",
            f"{base} lies on {kind}, a network file system, where neither locks nor fsync keep the promise",
            "give queue.directory a local disk",
        )
    if kind in VOLATILE:
        return warn(
            "file system",
            f"{base} lies in memory ({kind}): a reboot loses the queue",
            "give queue.directory a disk, unless you mean it",
        )
    return ok("file system", f"{kind or 'unknown'} at {base}")


def _holder(directory: Path) -> Finding:
    try:
        holder = holder_of(directory)
    except OSError as exc:
        return warn("lock", f"the lock cannot be read: {exc.strerror}", "run this as the relay's user")
    return ok("lock", f"held by {holder}: a relay runs" if holder else "nobody holds the queue: no relay runs on it")


def _sync(folder: Path) -> Finding:
    """Write and sync a few times, as a commit does."""
    seconds: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(SYNCS):
                began = time.perf_counter()
                file.write(os.urandom(SYNC_BYTES))
                file.flush()
                os.fdatasync(file.fileno())
                seconds.append(time.perf_counter() - began)
    except OSError as exc:
        return fail("fsync", f"{folder} cannot be written: {exc.strerror}", "see to the disk, or its permissions")
    return judge_sync(seconds)


def judge_sync(seconds: list[float]) -> Finding:
    """Say whether apps can wait for a disk that takes so long to sync a commit; pure."""
    usual, worst = statistics.median(seconds), max(seconds)
    text = f"{usual * 1000:.1f} ms usually, {worst * 1000:.1f} ms at worst, of {SYNCS} writes of {size(SYNC_BYTES)}"
    if worst > UNUSABLE_SECONDS:
        return fail("fsync", text, "apps would wait that long, and are refused past 5 s: use another disk")
    if usual > SLOW_SECONDS:
        return warn("fsync", text, "every answer waits for it: use a faster disk, or find out who else keeps it busy")
    return ok("fsync", text)


def _space(config: Config, base: Path) -> Finding:
    queue = config.queue
    found = os.statvfs(base)
    free = found.f_bavail * found.f_frsize
    held = _held_bytes(queue.directory / FOLDER_NAME)
    text = f"{size(free)} free; the queue has {size(held)} of {size(queue.bytes_max)}"
    if free < queue.disk_free_bytes_min:
        return fail(
            "space",
            f"{text}; queue.disk_free_bytes_min is {size(queue.disk_free_bytes_min)}, so events are refused",
            "free some space on this disk",
        )
    if free - queue.disk_free_bytes_min < queue.bytes_max - held:
        return warn(
            "space",
            f"{text}; the disk is full before the queue is",
            "give it a larger disk, or lower queue.bytes_max so that its alerts tell the truth",
        )
    return ok("space", text)


def _held_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    except OSError:
        return 0
