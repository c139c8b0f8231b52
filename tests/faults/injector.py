"""Disks that fail and clocks that step at a word: shim.c built, and the struct by which a test steers it meanwhile."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LAYOUT: Final = struct.Struct("=6I4Q")
CLOCK: Final = struct.Struct("=q")
"""One behind the other they are shim.c's struct control."""
ALWAYS: Final = 1.0


@dataclass(frozen=True)
class Fault:
    """What the disk does; the default is a disk that works."""

    write: int = 0
    """errno of writes and truncations, 0 where they work."""
    sync: int = 0
    open: int = 0
    odds: float = ALWAYS
    """Share of the calls that fail."""
    torn: bool = False
    """A write that fails leaves half of its bytes."""
    sync_seconds: float = 0.0
    """How much longer a sync takes."""
    nth: int = 0
    """Not 0: only the call with this number fails."""


HEALTHY: Final = Fault()


class FaultyDisk:
    """Steers the shim in every process that was started with its `environment`."""

    def __init__(self, library: Path, root: Path, control: Path, *, only: str = "") -> None:
        """Steer the files below `root`, or those of one name alone."""
        root.mkdir(parents=True, exist_ok=True)
        control.write_bytes(bytes(LAYOUT.size + CLOCK.size))
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "FAULT_ROOT": str(root),
            "FAULT_CONTROL": str(control),
        }
        if only:
            self.environment = {**self.environment, "FAULT_ONLY": only}
        with control.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), LAYOUT.size + CLOCK.size)

    def set(self, fault: Fault) -> None:
        """From now on behave so; the counters begin at 0."""
        odds = round(fault.odds * 65_536)
        milliseconds = round(fault.sync_seconds * 1000)
        errors = fault.write, fault.sync, fault.open
        LAYOUT.pack_into(self._map, 0, *errors, odds, fault.torn, milliseconds, fault.nth, 0, 0, 0)

    def heal(self) -> None:
        """Work again; the counters stay."""
        self._map[:24] = bytes(24)

    def set_clock(self, seconds: float) -> None:
        """Put the wall clock so far ahead of the true one, in one step."""
        CLOCK.pack_into(self._map, LAYOUT.size, round(seconds))

    @property
    def calls(self) -> int:
        """Opens where they may fail, writes, truncations and syncs since the last `set`."""
        return self._counters()[0]

    @property
    def failed(self) -> int:
        return self._counters()[1]

    @property
    def delayed(self) -> int:
        return self._counters()[2]

    def _counters(self) -> tuple[int, int, int]:
        values = LAYOUT.unpack_from(self._map)
        return values[7], values[8], values[9]


def build(source: Path, folder: Path) -> Path:
    """Compile one of the libraries that stand between the relay and libc; skips where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("standing between the relay and libc needs Linux and a C compiler")
    library = folder / f"{source.stem}.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library
