"""SQLite's write-ahead log, read without SQLite: which frames are whole, what is hidden, and a log of the whole ones.

    header  32 bytes: magic · version · page size · checkpoint · salts (2 words) · checksum (2 words)
    frame   24 bytes: page · pages of the database where it ends a transaction, else 0 · salts · checksum; then the page

All big-endian (sqlite.org/fileformat2.html#walformat). For SQLite the log ends before the first frame that is not
whole, for that is how an unfinished transaction looks; all that was committed behind it is gone without a word. A
checksum goes on from the one that stands in the frame before, so that a frame can be checked by these two alone:
garbage costs the frames that it lies in, and one more where it lies over a checksum.

When the log is begun anew it gets new salts, the first one higher by one, and is written over frames of old: those
have other salts and count for nothing. A header that is damaged leaves the salts to the first two frames that belong
together. It may also have been cut off by a power cut as it was written anew; all frames that follow were in the
database by then, and to apply them once more changes nothing.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from relay.spool.table import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
HIDDEN_COMMITS_MAX: Final = 1
"""Each commit is on the disk before the next one is begun, so a power cut leaves one at most in pieces."""

_VERSION: Final = 3007000
_MAGIC: Final = 0x377F0682
"""The lowest bit says that checksums are made of big-endian words."""
_WORD: Final = 0xFFFFFFFF
_FRAME: Final = struct.Struct(">II8s8s")
_INDEX: Final = struct.Struct("=I10xHII8s8s8s")
_IN_FILE: Final = struct.Struct("=I")
_INDEX_CHECKED: Final = 40
_NATIVE: Final = ">" if sys.byteorder == "big" else "<"


class Known(msgspec.Struct, frozen=True):
    """What the log's index (`-shm`) said when it was left: it counts a commit when that is on the disk."""

    salts: bytes
    frames: int
    pages: int
    """Of the database."""
    in_file: int
    """Frames that are in the database too."""

    @classmethod
    def read(cls, index: Path) -> Known | None:
        """Read it, before SQLite opens it and begins it anew; None where it is absent or not whole.

        Its header stands there twice, in the machine's byte order (sqlite.org/walformat.html).
        """
        try:
            with index.open("rb") as opened:
                raw = opened.read(2 * _INDEX.size + _IN_FILE.size)
        except FileNotFoundError:
            return None
        head = raw[: _INDEX.size]
        if len(raw) < 2 * _INDEX.size + _IN_FILE.size or raw[_INDEX.size : 2 * _INDEX.size] != head:
            return None
        version, _, frames, pages, _, salts, stored = _INDEX.unpack(head)
        if version != _VERSION or _checksum(_NATIVE, head[:_INDEX_CHECKED]) != struct.unpack("=II", stored):
            return None
        return cls(salts, frames, pages, min(frames, *_IN_FILE.unpack_from(raw, 2 * _INDEX.size)))


class Log:
    """A log by its open file; frames are numbered from 0."""

    def __init__(self, descriptor: int, known: Known | None = None) -> None:
        """Look at its header; `known` helps where that is damaged."""
        self._file = descriptor
        head = self._read(HEADER_BYTES, 0)
        magic, _, page_bytes = struct.unpack(">III", head[:12])
        self._order = ">" if magic & 1 else "<"
        self._sound = magic & ~1 == _MAGIC and _checksum(self._order, head[:24]) == struct.unpack(">II", head[24:])
        if not self._sound:
            self._order, page_bytes = _NATIVE, PAGE_BYTES
        self._frame_bytes: int = FRAME_HEADER_BYTES + page_bytes
        self.frames = max(0, os.fstat(descriptor).st_size - HEADER_BYTES) // self._frame_bytes
        """So many there is room for, frames of old among them."""
        self._salts = head[16:24] if self._sound else max(self._first_salts(), known.salts if known else b"")
        self._known = known if known is not None and known.salts == self._salts else None

    def taken(self) -> int:
        """Count the frames that SQLite takes; some 0.1 ms each."""
        taken = 0
        for number in range(self.frames if self._sound else 0):
            if not self.is_whole(number):
                break
            if self._pages_after(number):
                taken = number + 1
        return taken

    def is_damaged(self, taken: int) -> bool:
        """Whether transactions are hidden behind the frames that SQLite takes."""
        if taken == 0 and self._is_in_file():
            return False
        if self._known is not None and taken < self._known.frames:
            return True
        return self.commits_behind(taken) > HIDDEN_COMMITS_MAX

    def commits_behind(self, taken: int) -> int:
        """Count the transactions whose end can be seen behind these frames."""
        return sum(self._pages_after(number) > 0 for number in range(taken, self.frames))

    def committed(self) -> int:
        """Count the frames that are known to have been committed, be they whole or not."""
        seen = next((n + 1 for n in reversed(range(self.frames)) if self._pages_after(n)), 0)
        return max(seen, self._known.frames if self._known else 0)

    def end_of(self, frames: int) -> int:
        """Say how long a log of so many frames is, in bytes."""
        return HEADER_BYTES + frames * self._frame_bytes

    def is_whole(self, number: int) -> bool:
        """Whether a frame is of this log and as it was written."""
        page, _, salts, stored = self._frame_header(number)
        before = self._read(8, self.end_of(number - 1) + FRAME_HEADER_BYTES - 8 if number else HEADER_BYTES - 8)
        raw = self._read(self._frame_bytes, self.end_of(number))
        checked = raw[:8] + raw[FRAME_HEADER_BYTES:]
        found = _checksum(self._order, checked, *struct.unpack(">II", before))
        return page > 0 and salts == self._salts and found == struct.unpack(">II", stored)

    def rescue(self, target: Path) -> int:
        """Write a log of the frames that are whole and were committed; gives how many are lost.

        A transaction that lost its last frame ends with the next one. What is whole behind the last end that can be
        trusted is of a transaction that never ended, and stays out. Of a log that the database has taken up whole
        nothing goes over: an older state of a page must not hide the newer one.
        """
        if self._is_in_file():
            numbers, lost = [], 0
        else:
            whole = [number for number in range(self.frames) if self.is_whole(number)]
            ends = [number + 1 for number in whole if self._pages_after(number)]
            upto = max(self._known.frames if self._known else 0, *ends[-1:], 0)
            numbers = [number for number in whole if number < upto]
            lost = self.committed() - len(numbers)
        with target.open("wb") as opened:
            opened.writelines(self._rewritten(numbers))
        return lost

    def _is_in_file(self) -> bool:
        """Whether the database is known to have all that was committed; after a power cut the index may be old."""
        return self._known is not None and self._known.in_file >= self.committed()

    def _rewritten(self, numbers: list[int]) -> Iterator[bytes]:
        """Give header and frames, with the checksums of a log that holds just these."""
        magic = _MAGIC | (self._order == ">")
        head = struct.pack(">IIII8s", magic, _VERSION, self._frame_bytes - FRAME_HEADER_BYTES, 0, self._salts)
        checksum = _checksum(self._order, head)
        yield head + struct.pack(">II", *checksum)
        for number in numbers:
            raw = self._read(self._frame_bytes, self.end_of(number))
            start, page = raw[:8], raw[FRAME_HEADER_BYTES:]
            if self._known and number == numbers[-1] and not self._pages_after(number):
                start = start[:4] + struct.pack(">I", self._known.pages)
            checksum = _checksum(self._order, start + page, *checksum)
            yield start + self._salts + struct.pack(">II", *checksum) + page

    def _first_salts(self) -> bytes:
        for number in range(1, self.frames):
            self._salts = self._frame_header(number)[2]
            if self._frame_header(number - 1)[2] == self._salts and self.is_whole(number):
                return self._salts
        return b""

    def _pages_after(self, number: int) -> int:
        """Size of the database after a frame that ends a transaction of this log, in pages; else 0."""
        _, pages, salts, _ = self._frame_header(number)
        return pages if salts == self._salts else 0

    def _frame_header(self, number: int) -> tuple[int, int, bytes, bytes]:
        return _FRAME.unpack(self._read(FRAME_HEADER_BYTES, self.end_of(number)))

    def _read(self, count: int, at: int) -> bytes:
        """Read so many bytes; those behind the end of the file are zeros."""
        return os.pread(self._file, count, at).ljust(count, b"\0")


def _checksum(order: str, data: bytes, first: int = 0, second: int = 0) -> tuple[int, int]:
    """Go on with a checksum over more bytes, taken as words of that order."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _WORD
        second = (second + odd + first) & _WORD
    return first, second
