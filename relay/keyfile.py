"""Keys that live in files, read again when the file changes.

Kubernetes swaps a symlink above the file, editors put a new file in its place, credentials are rewritten: all of them
show in what `stat` says of the path, so one look every few seconds sees each of them. The look is taken in a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_SECONDS: Final = 2.0
KEYS_BYTES_MAX: Final = 16 * 1024 * 1024

_log = structlog.get_logger()


class KeyFile:
    """The keys of one file, one a line; blank lines and lines that begin with # are passed over.

    A file that cannot be read keeps the keys it had: a rotation under way must not refuse anybody.
    """

    def __init__(self, path: Path) -> None:
        """Remember the path; `load` reads it."""
        self.path = path
        self.keys: frozenset[str] = frozenset()
        self.first: str = ""
        """The first key of the file, empty while there is none."""
        self._seen: tuple[int, ...] | None = None

    def load(self) -> bool:
        """Read the file where it changed; True where the keys did. Blocks. Raises OSError where it cannot be read."""
        stat = self.path.stat()
        seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
        if seen == self._seen:
            return False
        with self.path.open("rb") as file:
            text = file.read(KEYS_BYTES_MAX).decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        before, self._seen = (self.first, self.keys), seen
        self.first, self.keys = (keys[0] if keys else ""), frozenset(keys)
        return before != (self.first, self.keys)


async def follow(file: KeyFile, changed: Callable[[], None]) -> None:
    """Keep a file's keys fresh for as long as the task runs; `changed` is called on the loop."""
    complained = False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            if await asyncio.to_thread(file.load):
                _log.info("key_file_reloaded", path=str(file.path), keys=len(file.keys))
                changed()
            complained = False
        except OSError as exc:
            if not complained:
                _log.warning("key_file_unreadable", path=str(file.path), error=exc.strerror, kept_keys=len(file.keys))
            complained = True
