"""A sync that fails makes Linux forget what was not written, and the next sync says yes: a power cut then tells.

After EIO from fsync the pages count as clean; they can still be read, until they are evicted or the power goes. Who
takes the next fsync's yes for a yes to all that was written before, as databases have done, has lost it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash.powercut import SECTOR_BYTES, Call, Disk, File, read_log
from crash.test_power_loss import stored
from daemon.harness import RELAY, Audit, CountingUpstream, Daemon, Load, seeded, wait_until
from faults.injector import Fault, FaultyDisk
from faults.rig import PacedLoad, Row

from relay.errors import SpoolError
from relay.spool.table import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

PAGE_BYTES = 4096
SEED = 20261125
DEAF = (sys.executable, str(Path(__file__).parent / "deaf_relay.py"))


@dataclass
class CachedFile(File):
    """A file as Linux keeps it: pages in memory, of which those that are dirty are written by the next sync."""

    cache: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)

    def write(self, call: Call) -> None:
        if call.op == "T":
            del self.cache[call.offset :]
            self.cache.extend(bytes(call.offset - len(self.cache)))
            return
        end = call.offset + len(call.data)
        self.cache.extend(bytes(max(0, call.offset - len(self.cache))))
        self.cache[call.offset : end] = call.data
        self.dirty.update(range(call.offset // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1))

    def sync(self) -> None:
        self._write_back(self.safe, lambda: True)
        self.dirty.clear()

    def fail_sync(self, rng: Random) -> None:
        """Some pages reach the disk and some do not; all of them count as clean from now on."""
        self._write_back(self.safe, lambda: rng.random() < 0.3)
        self.dirty.clear()

    def after_cut(self, random: Random, chance: float) -> bytes:
        content = bytearray(self.safe)
        self._write_back(content, lambda: random.random() < chance)
        return bytes(content)

    def _write_back(self, disk: bytearray, lasts: Callable[[], bool]) -> None:
        del disk[len(self.cache) :]
        disk.extend(bytes(len(self.cache) - len(disk)))
        for page in sorted(self.dirty):
            for start in range(page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, len(self.cache)), SECTOR_BYTES):
                if lasts():
                    disk[start : start + SECTOR_BYTES] = self.cache[start : start + SECTOR_BYTES]


class CachedDisk(Disk):
    """A folder of such files."""

    def __init__(self, root: Path, rng: Random) -> None:
        super().__init__(root)
        self._rng = rng

    def apply(self, call: Call) -> None:
        match call.op:
            case "C":
                super().apply(call)
                self._files[call.inode] = CachedFile()
            case "W" | "T":
                self._file(call).write(call)
            case "S":
                self._file(call).sync()
            case "F":
                self._file(call).fail_sync(self._rng)
            case _:
                super().apply(call)

    def _file(self, call: Call) -> CachedFile:
        found = self._files[call.inode]
        assert isinstance(found, CachedFile)
        return found


@dataclass
class Recording:
    """What the relay did to its disk, and when events were acknowledged; nothing was delivered."""

    calls: list[Call]
    acked: dict[bytes, int]

    def losses(self, root: Path, folder: Path, cuts: int) -> Iterator[tuple[int, int]]:
        """Cut the power at random moments after the first failed sync; gives what was at stake, and what is gone."""
        rng = seeded(SEED)
        first = next(call.end for call in self.calls if call.op == "F")
        moments = sorted(rng.choices([end for end in self.acked.values() if end > first], k=cuts))
        disk, upcoming = CachedDisk(root, rng), iter(self.calls)
        call = next(upcoming, None)
        for number, at in enumerate(moments):
            while call is not None and call.end <= at:
                disk.apply(call)
                call = next(upcoming, None)
            image = folder / f"image-{number}"
            disk.write_image(image, rng)
            owed = {event for event, acked in self.acked.items() if acked <= at}
            yield len(owed), len(owed - stored(image))


@dataclass
class Recorder:
    """The relay under load, upstream shut, with all that it does to its disk recorded; it ends with kill -9."""

    daemon: Daemon
    load: Load
    log: Path
    acked: dict[bytes, int]

    def recording(self) -> Recording:
        return Recording(list(read_log(self.log)), self.acked)


@contextlib.contextmanager
def recorded(
    folder: Path, recorder: Path, disk: FaultyDisk, command: Sequence[str] = RELAY, **load: int
) -> Iterator[Recorder]:
    log = folder / "calls"
    log.touch()
    watch = os.open(log, os.O_RDONLY)
    environment = dict(disk.environment)
    environment["LD_PRELOAD"] = f"{recorder}:{environment['LD_PRELOAD']}"
    environment |= {"RECORD_ROOT": environment["FAULT_ROOT"], "RECORD_LOG": str(log), "FAULT_LOG": str(log)}
    acked: dict[bytes, int] = {}

    def remember(events: list[bytes]) -> None:
        acked.update(dict.fromkeys(events, os.lseek(watch, 0, os.SEEK_END)))

    with CountingUpstream() as upstream:
        upstream.close()
        daemon = Daemon(folder, upstream.url, command=command, environment=environment)
        one = Recorder(daemon, PacedLoad(daemon.url, threads=3, on_ack=remember, **load), log, acked)
        try:
            daemon.start().wait_ready()
            with one.load.running():
                yield one
                daemon.kill9()
        finally:
            if daemon.alive():
                daemon.kill9()
    os.close(watch)


def record(folder: Path, recorder: Path, disk: FaultyDisk, command: Sequence[str]) -> Recording:
    """Have syncs fail now and then."""
    with recorded(folder, recorder, disk, command, events_per_request=3) as one:
        for odds in (1.0, 0.3, 1.0, 0.5):
            one.load.wait_acked(150)
            disk.set(Fault(sync=errno.EIO, odds=odds))
            time.sleep(0.7)
            assert disk.failed
            disk.heal()
        wait_until("ready", lambda: one.daemon.admin("/readyz")[0] == 200)
        one.load.wait_acked(150)
    return one.recording()


@pytest.mark.slow
def test_a_power_cut_after_failed_syncs_loses_nothing_that_was_acknowledged(
    tmp_path: Path, recorder: Path, faulty: FaultyDisk, tell: Callable[[Row], None], pytestconfig: pytest.Config
) -> None:
    cuts = max(10, pytestconfig.getoption("--crash-images") // 3)
    run = record(tmp_path, recorder, faulty, RELAY)
    results = list(run.losses(tmp_path / "queue", tmp_path, cuts))
    lost = sum(gone for _, gone in results)
    assert lost == 0, [result for result in results if result[1]]
    audit = Audit.of(list(run.acked), list(run.acked))
    failed = sum(call.op == "F" for call in run.calls)
    tell(Row(f"power cut after {failed} failed fsyncs whose pages are gone", cuts, audit, 0.0))


@pytest.mark.slow
def test_a_relay_that_takes_the_next_sync_s_word_is_caught(
    tmp_path: Path, recorder: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    run = record(tmp_path, recorder, faulty, DEAF)
    results = list(run.losses(tmp_path / "queue", tmp_path, 10))
    lost = max(gone for _, gone in results)
    assert lost > 0
    audit = Audit.of([b"%d" % n for n in range(len(run.acked))], [b"%d" % n for n in range(len(run.acked) - lost)])
    tell(Row("negative control: power cut, failed fsyncs overheard", 10, audit, 0.0))


def fail_behind_a_reader(one: Recorder, disk: FaultyDisk, *, reader_then: str) -> sqlite3.Connection:
    """Have the file's sync fail once, for pages of which a part was written while somebody read the log.

    Beside a reader SQLite brings a part of the log into the file, does not sync it, and never writes it again. Once the
    reader is gone it brings over the rest and syncs for all: the failure may be of any page of either part.
    """
    one.load.wait_acked(300)
    reader = sqlite3.connect(one.daemon.queue_folder / "spool" / FILE_NAME, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM queue_default").fetchall()
    one.load.wait_acked(3000)  # the log grows past where it is emptied, as far as the reader lets it
    disk.set(Fault(sync=errno.EIO))
    one.load.wait_acked(300)
    assert not disk.failed, "behind a reader nothing is synced"
    reader.execute("ROLLBACK") if reader_then == "stays" else reader.close()
    wait_until("the sync fails", lambda: disk.failed)
    disk.heal()
    return reader


@pytest.fixture
def faulty_file(shim: Path, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(shim, tmp_path / "queue", tmp_path / "control", only=FILE_NAME)


@pytest.mark.slow
@pytest.mark.parametrize("reader_then", ["stays", "leaves"])
def test_a_sync_of_the_file_that_fails_behind_a_reader_is_noticed_and_a_power_cut_then_loses_nothing(
    tmp_path: Path, recorder: Path, faulty_file: FaultyDisk, reader_then: str, tell: Callable[[Row], None]
) -> None:
    with recorded(tmp_path, recorder, faulty_file, events_per_request=3, pad_bytes=2000) as one:
        reader = fail_behind_a_reader(one, faulty_file, reader_then=reader_then)
        wait_until("it is told", lambda: "emptying the log" in one.daemon.log)
        if reader_then == "stays":
            time.sleep(1.5)
            assert one.daemon.admin("/readyz")[0] == 503, "SQLite keeps in mind what it wrote while others have it open"
            reader.close()
        wait_until("ready", lambda: one.daemon.admin("/readyz")[0] == 200)
        one.load.wait_acked(3000)
    results = list(one.recording().losses(tmp_path / "queue", tmp_path, 20))
    assert sum(gone for _, gone in results) == 0, [result for result in results if result[1]]
    events = [json.loads(line)["event"] for line in one.daemon.log.splitlines()]
    assert {"commit_failed", "commits_recovered"} <= set(events)
    audit = Audit.of(list(one.acked), list(one.acked))
    tell(Row(f"power cut after the file's fsync failed, a reader {reader_then}", len(results), audit, 0.0))


@pytest.mark.slow
def test_a_relay_that_does_not_hear_of_the_file_s_failed_sync_is_caught(
    tmp_path: Path, recorder: Path, faulty_file: FaultyDisk, figure: Callable[[str], None]
) -> None:
    with recorded(tmp_path, recorder, faulty_file, DEAF, events_per_request=3, pad_bytes=2000) as one:
        fail_behind_a_reader(one, faulty_file, reader_then="leaves")
        one.load.wait_acked(6000)  # the log is emptied and begun anew
    lost, what = 0, "events lost"
    try:
        lost = max(gone for _, gone in one.recording().losses(tmp_path / "queue", tmp_path, 10))
    except SpoolError as damage:  # so much is missing that the file cannot be read
        lost, what = 1, str(damage)
    assert lost > 0
    figure(f"negative control: power cut, the file's failed fsync overheard: {lost} or more, {what}")
