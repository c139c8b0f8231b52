"""Disks after a power cut: built from the recorded calls of a process, with what was not synced surviving by chance.

The model is as harsh as POSIX allows. A file's bytes and length are safe once it was synced, a name once its folder
was. Of what was not, each write survives in 512-byte sectors or not at all, each change of length or not, and of each
folder's changes of names the first few.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

HEAD = struct.Struct("=BQQI")
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Call:
    """One recorded call."""

    op: str
    inode: int
    offset: int
    data: bytes
    end: int
    """Length of the log once it was recorded: what a stamp taken later is not below."""


def read_log(log: Path) -> Iterator[Call]:
    """Give the recorded calls in order; a last one that was cut off is left out."""
    data = log.read_bytes()
    at = 0
    while at + HEAD.size <= len(data):
        op, inode, offset, length = HEAD.unpack_from(data, at)
        at += HEAD.size + length
        if at <= len(data):
            yield Call(chr(op), inode, offset, data[at - length : at], at)


@dataclass
class File:
    """What is safe, and the calls since."""

    safe: bytearray = field(default_factory=bytearray)
    since: list[Call] = field(default_factory=list)

    def sync(self) -> None:
        for call in self.since:
            _apply(self.safe, call)
        self.since.clear()

    def after_cut(self, random: Random, chance: float) -> bytes:
        content = bytearray(self.safe)
        for call in self.since:
            for piece in _sectors(call):
                if random.random() < chance:
                    _apply(content, piece)
        return bytes(content)


class Disk:
    """A folder as its recorded calls leave it, at any point among them."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._files: dict[int, File] = {}
        self._names: dict[str, int | None] = {}
        """Safe names: path → inode, None for a folder."""
        self._renamed: list[tuple[str, Call]] = []
        """Changes of names that are not safe yet, each with its folder."""

    def apply(self, call: Call) -> None:
        """Carry out the next call."""
        match call.op:
            case "C":
                self._files[call.inode] = File()
                self._renamed.append((_folder_of(call), call))
            case "M" | "U" | "R":
                self._renamed.append((_folder_of(call), call))
            case "W" | "T":
                self._files[call.inode].since.append(call)
            case "S":
                self._files[call.inode].sync()
            case "D":
                folder = call.data.decode()
                for where, change in self._renamed:
                    if where == folder:
                        _rename(self._names, change)
                self._renamed = [(where, change) for where, change in self._renamed if where != folder]
            case _:
                raise AssertionError(call)

    def write_image(self, target: Path, random: Random) -> None:
        """Lay below `target` what a power cut now may leave."""
        chance = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        names = dict(self._names)
        lasts = {folder: random.random() < chance for folder, _ in self._renamed}
        for folder, change in self._renamed:
            lasts[folder] = lasts[folder] and random.random() < max(chance, 0.5)
            if lasts[folder]:
                _rename(names, change)
        target.mkdir(parents=True)
        for path, inode in sorted(names.items()):
            place = target / Path(path).relative_to(self._root)
            if not place.parent.exists():
                continue  # the folder's own name was lost
            if inode is None:
                place.mkdir()
            else:
                place.write_bytes(self._files[inode].after_cut(random, chance))


def _folder_of(call: Call) -> str:
    old, _, new = call.data.decode().partition("\0")
    folder = str(Path(old).parent)
    assert not new or str(Path(new).parent) == folder, "a rename across folders is not modelled"
    return folder


def _rename(names: dict[str, int | None], call: Call) -> None:
    path, _, new = call.data.decode().partition("\0")
    match call.op:
        case "C":
            names[path] = call.inode
        case "M":
            names[path] = None
        case "U":
            names.pop(path, None)
        case "R" if path in names:
            names[new] = names.pop(path)


def _apply(content: bytearray, call: Call) -> None:
    if call.op == "T":
        del content[call.offset :]
        content.extend(bytes(call.offset - len(content)))
        return
    content.extend(bytes(max(call.offset - len(content), 0)))
    content[call.offset : call.offset + len(call.data)] = call.data


def _sectors(call: Call) -> Iterator[Call]:
    """Cut a write where the disk's sectors meet."""
    if call.op == "T":
        yield call
        return
    start, end = call.offset, call.offset + len(call.data)
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield Call("W", call.inode, start, call.data[start - call.offset : stop - call.offset], call.end)
        start = stop
