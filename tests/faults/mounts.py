"""Small disks of their own: a tmpfs, and ext4 in a file. They need root; what was mounted is unmounted in any case."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root: Final = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None,
    reason="mounting a disk of one's own needs Linux, root and mkfs.ext4",
)
EXT4_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)."""
NO_LOG_FLUSH: Final = 2
"""Nothing more reaches the disk, not even ext4's journal: the power is gone."""


@contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a memory disk of so many bytes."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


class LoopDisk:
    """ext4 in a file, mounted at `folder`; can lose its power and be mounted again."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._image = folder.with_name(folder.name + ".img")
        folder.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self._image)], check=True)

    def mount(self) -> None:
        """Mount it; replays the journal after a loss of power. Raises CalledProcessError where loops are lacking."""
        _mount("-o", "loop", str(self._image), str(self.folder))

    def unmount(self) -> None:
        """Unmount it; the loop device goes with the mount."""
        _unmount(self.folder)

    def cut_power(self) -> None:
        """From now on every write and sync fails, and what was not synced is lost."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@contextmanager
def loop_disk(folder: Path, size_bytes: int) -> Iterator[LoopDisk]:
    """Give an ext4 disk of so many bytes, mounted; skips where the machine has no loop devices."""
    disk = LoopDisk(folder, size_bytes)
    try:
        disk.mount()
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"no loop device to be had: {exc.stderr.decode()}")
    try:
        yield disk
    finally:
        disk.unmount()


@contextmanager
def ext4(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an ext4 disk of so many bytes."""
    with loop_disk(folder, size_bytes) as disk:
        yield disk.folder


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)
        return
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
