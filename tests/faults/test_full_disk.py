"""Disks that are really full: refused with 503 while they are, delivery goes on, and room is used as soon as it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import wait_until
from faults.mounts import ext4, needs_root, tmpfs
from faults.rig import Row, trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [needs_root, pytest.mark.root, pytest.mark.slow]

DISK_BYTES = 112 << 20
DISKS = {"tmpfs": tmpfs, "ext4 on loop": ext4}
FULL_SECONDS = {"tmpfs": 4.0, "ext4 on loop": 11.0}
"""The longer one is longer than twenty commits that fail otherwise, after which the process ends."""


def fill(file: Path) -> None:
    """Take every free block, as a log file run wild does."""
    with file.open("ab", buffering=0) as foreign:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    foreign.write(bytes(size))
            except OSError:
                continue


def used_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in (folder / "spool").iterdir())


@pytest.mark.parametrize("kind", DISKS)
def test_a_queue_that_fills_its_disk_refuses_delivers_recovers_and_shrinks(
    tmp_path: Path, kind: str, tell: Callable[[Row], None]
) -> None:
    settings = {"queue": {"disk_free_bytes_min": 8 << 20}, "upstream": {"batch_events_max": 1000}}
    with (
        DISKS[kind](tmp_path / "queue", DISK_BYTES) as disk,
        trial(tmp_path, settings=settings, upstream_down=True, pad_bytes=60_000) as one,
    ):
        began = time.monotonic()
        wait_until("the disk is full", lambda: one.load.refused["503"] > 20, seconds=40)
        refused = {r.code for r in one.watch.since(began, one.watch.posts) if r.status == 503}
        assert refused <= {"queue_full"}  # the watcher's small posts may still find room
        wait_until("not ready", lambda: one.daemon.admin("/readyz")[0] == 503, seconds=5)
        told = time.monotonic()
        time.sleep(2)
        readies = {reply.status for reply in one.watch.since(told, one.watch.readies)}
        assert readies == {503}, "readiness swings while the disk stays full"
        one.load.stop()
        full = used_bytes(disk)
        assert full > 64 << 20
        opened = time.monotonic()
        one.upstream.open()
        one.recover(opened, seconds=30)
        one.check_answers()
        audit = one.audit()
        wait_until("disk use falls", lambda: used_bytes(disk) < full - (8 << 20), seconds=30)
        left = used_bytes(disk)
    assert (audit.lost, audit.repeated) == (0, 0)
    more = f"disk use {full >> 20} MiB full, {left >> 20} MiB {time.monotonic() - opened:.0f} s after upstream's return"
    tell(Row(f"{kind}: filled by the queue", 1, audit, one.recovery_seconds, more))


@pytest.mark.parametrize("kind", DISKS)
def test_a_disk_filled_by_somebody_else_is_refused_and_delivered_from_and_used_again_when_it_has_room(
    tmp_path: Path, kind: str, tell: Callable[[Row], None]
) -> None:
    with (
        DISKS[kind](tmp_path / "queue", DISK_BYTES) as disk,
        trial(tmp_path, settings={"queue": {"disk_free_bytes_min": 1 << 20}}, upstream_down=True) as one,
    ):
        one.load.wait_acked(500)
        process = one.daemon.process
        fill(disk / "foreign")
        began = time.monotonic()
        wait_until("refused", lambda: one.watch.since(began, one.watch.posts) and one.watch.posts[-1].status == 503)
        taken = len(one.upstream.events)
        one.upstream.open()
        one.upstream.wait_events(taken + 400)
        time.sleep(max(0.0, began + FULL_SECONDS[kind] - time.monotonic()))
        fill(disk / "foreign")
        assert one.daemon.alive(), one.daemon.log[-3000:]
        wait_until("not ready", lambda: one.daemon.admin("/readyz")[0] == 503, seconds=3)
        (disk / "foreign").unlink()
        one.recover(time.monotonic())
        assert one.daemon.process is process
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(f"{kind}: filled by another's file for {FULL_SECONDS[kind]:.0f} s", 1, audit, one.recovery_seconds))
