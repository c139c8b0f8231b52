"""The queue folder: made, judged fit for the promise, and locked against a second relay."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from relay.errors import SpoolError, SpoolLocked, SpoolUnfit

FOLDER_NAME: Final = "spool"
"""Inside `queue.directory`, which may be a volume's root with permissions that are not ours to change."""
LOCK_NAME: Final = "lock"

MOUNTS: Final = Path("/proc/self/mountinfo")
"""What this process sees mounted, a line each (proc(5))."""
NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.s3fs"),
        *("fuse.sshfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"),
    }
)
"""File systems on which flock or fsync promise less than a local disk; SQLite's WAL needs shared memory besides."""
VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
"""File systems that a reboot empties."""


class Space(msgspec.Struct, frozen=True):
    """The file system that the folder lies on."""

    free_bytes: int
    """Left to us."""
    size_bytes: int


class Folder(msgspec.Struct, frozen=True):
    """A folder that this process holds; `close` gives it free."""

    path: Path
    volatile: bool
    """It lies in memory: a restart of the machine, or of the pod, loses it."""
    lock: int
    """Descriptor that carries the flock."""

    def close(self) -> None:
        """Let another process have it."""
        os.close(self.lock)

    def space(self) -> Space:
        """Ask the file system; a matter of microseconds, yet for a thread."""
        found = os.statvfs(self.path)
        return Space(free_bytes=found.f_bavail * found.f_frsize, size_bytes=found.f_blocks * found.f_frsize)


def hold(directory: Path, mounts: Path = MOUNTS) -> Folder:
    """Make the folder where it is absent and lock it.

    Raises SpoolLocked where another process holds it, SpoolUnfit on a network file system, SpoolError where it cannot
    be made or written.
    """
    path = directory / FOLDER_NAME
    try:
        kind = file_system_of(nearest(directory), mounts)
        if kind in NETWORK:
            raise SpoolUnfit(
                f"queue.directory {directory} lies on a network file system ({kind}), where neither locks nor fsync "
                "keep the promise that 202 means on disk; give it a local disk"
            )
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_up(path)
        path.chmod(0o700)
        lock = _lock(path)
    except OSError as exc:
        raise SpoolError(f"queue.directory {directory} cannot be used: {exc.strerror}: {exc.filename}") from exc
    return Folder(path=path, volatile=kind in VOLATILE, lock=lock)


def holder_of(directory: Path) -> str | None:
    """Say which process holds the folder, None where none does."""
    try:
        lock = os.open(directory / FOLDER_NAME / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 200, 0).decode(errors="replace").strip() or "a process that has not said its name"
    finally:
        os.close(lock)
    return None


def file_system_of(path: Path, mounts: Path = MOUNTS) -> str:
    """Name the type of the file system that a path lies on, empty where the platform does not tell."""
    try:
        device = path.stat().st_dev
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in reversed(lines):  # a later mount hides an earlier one
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return ""


def _lock(path: Path) -> int:
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise SpoolLocked(
            f"{path} is held by {holder}; stop that relay, or give this one a queue.directory of its own"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()}\n".encode(), 0)
    return lock


def nearest(path: Path) -> Path:
    """The nearest parent that exists: the file system on which a folder would be made."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _sync_up(path: Path) -> None:
    """Force the new folder's name, and its parents' names, to the disk."""
    for folder in (path, path.parent, path.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
