"""Keys that live in files, read again when the file changes.

Kubernetes swaps a symlink above the file, editors put a new file in its place, credentials are rewritten: all of them
show in what `stat` says of the path, so one look every few seconds sees each of them. The look is taken in a thread.

A rotation under way must refuse nobody: a file that cannot be read, holds no key or changes while it is read leaves
the keys as they were, and is looked at again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_SECONDS: Final = 2.0
KEYS_BYTES_MAX: Final = 16 * 1024 * 1024

_log = structlog.get_logger()


class KeyFile:
    """The keys of one file, one a line; blank lines and lines that begin with # are passed over."""

    def __init__(self, path: Path) -> None:
        """Remember the path; `load` reads it."""
        self.path = path
        self.keys: frozenset[str] = frozenset()
        """Empty until a file with keys was read, never again afterwards."""
        self.first: str = ""
        """The first key of the file, empty while there is none."""
        self._seen: tuple[int, ...] | None = None

    def load(self) -> bool:
        """Read the file where it changed; True where the keys did. Blocks. Raises OSError where it gives no keys."""
        seen = _look(self.path.stat())
        if seen == self._seen:
            return False
        content = self._read()
        if _look(self.path.stat()) != seen:
            raise OSError(errno.EAGAIN, "it changed while it was read")
        lines = [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise OSError(errno.ENODATA, "it holds no key")
        before, self._seen = (self.first, self.keys), seen
        self.first, self.keys = keys[0], frozenset(keys)
        return before != (self.first, self.keys)

    def _read(self) -> bytes:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold the thread
        with open(file, "rb") as reader:  # noqa: PTH123 – it is open already
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "it is not a file")
            content = reader.read(KEYS_BYTES_MAX + 1)
        if len(content) > KEYS_BYTES_MAX:
            raise OSError(errno.EFBIG, f"it has more than {KEYS_BYTES_MAX} bytes")
        return content


async def follow(file: KeyFile, changed: Callable[[], None], *, look_seconds: float = LOOK_SECONDS) -> None:
    """Keep a file's keys fresh for as long as the task runs; `changed` is called on the loop."""
    complained = False
    while True:
        await asyncio.sleep(look_seconds)
        try:
            if await asyncio.to_thread(file.load):
                _log.info("key_file_reloaded", path=str(file.path), keys=len(file.keys))
                changed()
            complained = False
        except OSError as exc:
            if not complained:
                _log.warning("key_file_unreadable", path=str(file.path), error=exc.strerror, kept_keys=len(file.keys))
            complained = True


def _look(found: os.stat_result) -> tuple[int, ...]:
    """Tell one state of a file from any other."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
