"""All faults mixed by a seed: at the end every event is accounted for, and memory and descriptors are as at the start.

Three quarters of a minute, an hour by `--soak`, or so many seconds as `--soak=2400` says. In the first half the relay
is killed and restarted too; the second half is one life, whose memory and descriptors have to stay flat.
"""

from __future__ import annotations

import errno
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest
from daemon.harness import seeded, wait_until
from faults.injector import Fault
from faults.rig import BATCH_EVENTS_MAX, IN_FLIGHT_MAX, Row, trial

from relay.spool.table import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from faults.injector import FaultyDisk
    from faults.rig import Trial

SEED = 20261124
CURVE_POINTS = 12
GROWTH_BYTES_MAX = 24 << 20
GROWTH_FILES_MAX = 12
"""Connections come and go: so many more may be open at one look than at another."""

DISK = (
    Fault(write=errno.ENOSPC),
    Fault(write=errno.EIO, torn=True),
    Fault(write=errno.EIO, odds=0.1),
    Fault(sync=errno.EIO),
    Fault(sync=errno.EIO, odds=0.3),
    Fault(sync_seconds=0.7),
)
LIMITS = ((resource.RLIMIT_FSIZE, 32_768), (resource.RLIMIT_NOFILE, 8))


@dataclass
class Soak:
    """The faults of one run, and what was measured between them."""

    one: Trial
    disk: FaultyDisk
    rng: Random
    faults: int = 0
    may_repeat: int = 0
    """Faults that caught batches in flight."""
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def run(self, seconds: float, kinds: tuple[Callable[[Soak], None], ...]) -> None:
        """Have one fault after the other, each undone and recovered from."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.rng.choice(kinds)(self)
            self.faults += 1
            self.one.recover(time.monotonic(), seconds=30)
            time.sleep(self.rng.random() * 0.5)
            self._measure()

    def wait(self) -> None:
        time.sleep(0.3 + self.rng.random())

    def _measure(self) -> None:
        assert self.one.daemon.process is not None
        self.memory.append(self.one.daemon.resident_bytes())
        self.files.append(len(list(Path(f"/proc/{self.one.daemon.process.pid}/fd").iterdir())))


def fail_disk(soak: Soak) -> None:
    soak.disk.set(soak.rng.choice(DISK))
    soak.wait()
    soak.disk.heal()


def limit(soak: Soak) -> None:
    assert soak.one.daemon.process is not None
    pid = soak.one.daemon.process.pid
    kind, value = soak.rng.choice(LIMITS)
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, before[1]))
    soak.wait()
    resource.prlimit(pid, kind, before)


def refuse_upstream(soak: Soak) -> None:
    soak.one.upstream.fail(soak.rng.choice((500, 503, 429)), soak.rng.random())
    soak.wait()
    soak.one.upstream.heal()


def cut_upstream(soak: Soak) -> None:
    soak.may_repeat += 1
    soak.one.upstream.close()
    soak.wait()
    soak.one.upstream.open()


def take_the_file_away(soak: Soak) -> None:
    spool, log = soak.one.daemon.queue_folder / "spool", soak.one.daemon.log_file
    logged = log.stat().st_size
    (spool / soak.rng.choice((FILE_NAME, f"{FILE_NAME}-wal"))).rename(spool / "moved")
    wait_until("it is salvaged", lambda: b'"queue_file_salvaged"' in log.read_bytes()[logged:], seconds=10)
    for left in (spool / "moved", *spool.glob("*.damaged-*")):
        left.unlink(missing_ok=True)


def kill(soak: Soak) -> None:
    soak.may_repeat += 1
    soak.one.restart_after_kill()


def restart(soak: Soak) -> None:
    assert soak.one.daemon.sigterm() == 0
    soak.one.daemon.start().wait_ready()


LASTING = (fail_disk, fail_disk, limit, refuse_upstream, cut_upstream, take_the_file_away)
ENDING = (*LASTING, kill, restart)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(5000)
def test_an_hour_of_faults_ends_with_every_event_accounted_for_and_memory_flat(
    tmp_path: Path,
    faulty: FaultyDisk,
    pytestconfig: pytest.Config,
    tell: Callable[[Row], None],
    figure: Callable[[str], None],
) -> None:
    wished = pytestconfig.getoption("--soak")
    seconds = wished or 45
    pace = {"rest_seconds": 0.1, "events_per_request": 2} if wished else {"rest_seconds": 0.01}
    with trial(tmp_path, environment=faulty.environment, **pace) as one:
        soak = Soak(one, faulty, seeded(SEED))
        soak.run(seconds / 2, ENDING)
        soak.memory.clear()
        soak.files.clear()
        process = one.daemon.process
        soak.run(seconds / 2, LASTING)
        assert one.daemon.process is process, "the second half is one life"
        audit = one.audit(120)
    tell(Row(f"soak, {seconds:.0f} s, seed {SEED}", soak.faults, audit, one.recovery_seconds))
    figure(f"soak, memory in MiB: {curve([value >> 20 for value in soak.memory])}")
    figure(f"soak, descriptors: {curve(soak.files)}")
    assert audit.lost == 0
    assert audit.repeated <= soak.may_repeat * IN_FLIGHT_MAX * BATCH_EVENTS_MAX
    for name, values, growth_max in (
        ("memory", soak.memory, GROWTH_BYTES_MAX),
        ("descriptors", soak.files, GROWTH_FILES_MAX),
    ):
        third = max(1, len(values) // 3)
        grown = median(values[-third:]) - median(values[:third])
        assert grown <= growth_max, f"{name} grew by {grown}: {values}"


def curve(values: list[int]) -> str:
    """Give some points of a curve, evenly spread."""
    step = max(1, len(values) // CURVE_POINTS)
    return " ".join(str(value) for value in values[::step])
