"""Writes lines from a thread of its own, so that a slow terminal or pipe never holds up whoever logs."""

from __future__ import annotations

import io
import os
import select
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

LINES_MAX: Final = 4096
TIDY_SECONDS: Final = 10.0
CLOSE_SECONDS_MAX: Final = 2.0


class LineWriter:
    """A bounded queue of lines and the thread that empties it; what finds no room is dropped and counted."""

    def __init__(self, stream: TextIO, *, tidy: Callable[[], object], lines_max: int = LINES_MAX) -> None:
        """Start the thread. `tidy` is called on it after each write, and every ten seconds; it may put lines."""
        self._write = _raw_writer(stream)
        self._tidy = tidy
        self._lines_max = lines_max
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Have the line written, a line break after it; never waits."""
        if self._lines.qsize() < self._lines_max:
            self._lines.put(line)
        else:
            self._drop(1)

    def take_dropped(self) -> int:
        """Give how many lines were dropped since this was last asked."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """Write what waits, for two seconds at most: a reader that has stopped must not keep the process alive."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS_MAX)

    def _run(self) -> None:
        closing = False
        while not closing:
            lines = self._take()
            closing = None in lines
            self._write_all([line for line in lines if line is not None])
            self._tidy()
        self._write_all([line for line in self._take_waiting() if line is not None])

    def _take(self) -> list[str | None]:
        try:
            first = self._lines.get(timeout=TIDY_SECONDS)
        except Empty:
            return []
        return [first, *self._take_waiting()]

    def _take_waiting(self) -> list[str | None]:
        lines: list[str | None] = []
        with suppress(Empty):
            while len(lines) < self._lines_max:
                lines.append(self._lines.get_nowait())
        return lines

    def _write_all(self, lines: list[str]) -> None:
        if not lines:
            return
        try:
            self._write("\n".join(lines) + "\n")
        except (OSError, ValueError):  # the pipe's reader is gone, the disk is full, the stream is closed
            self._drop(len(lines))

    def _drop(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines


def _raw_writer(stream: TextIO) -> Callable[[str], None]:
    """Give a function that writes text: to the file descriptor, where there is one.

    Python's own buffer would be locked by a write that hangs, and Python aborts when it then flushes at exit.
    """
    try:
        descriptor = stream.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return lambda text: _write_buffered(stream, text)
    return lambda text: _write_descriptor(descriptor, text.encode("utf-8", "backslashreplace"))


def _write_buffered(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _write_descriptor(descriptor: int, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody who shares the pipe has made it non-blocking
            select.select([], [descriptor], [])
