"""Limits of the system met under load: descriptors, file size, address space, and 256 MB of memory in all."""

from __future__ import annotations

import errno
import gzip
import resource
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from daemon.harness import RELAY, envelope, make_event, post, seeded
from faults.injector import Fault
from faults.mounts import needs_root
from faults.rig import BATCH_EVENTS_MAX, IN_FLIGHT_MAX, Row, trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.harness import Daemon
    from faults.injector import FaultyDisk
    from faults.rig import Trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of a running process")

MEMORY_BYTES = 256 << 20
MEMORY = Path("/sys/fs/cgroup/memory")


@contextmanager
def limited(daemon: Daemon, kind: int, value: int) -> Iterator[None]:
    """Lower a limit of the running process inside the block."""
    assert daemon.process is not None
    pid = daemon.process.pid
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, hard))


def process_folder(one: Trial) -> Path:
    assert one.daemon.process is not None
    return Path(f"/proc/{one.daemon.process.pid}")


def test_more_connections_than_descriptors_are_told_to_come_again(tmp_path: Path, tell: Callable[[Row], None]) -> None:
    few = ("prlimit", "--nofile=256:256", *RELAY)
    with trial(tmp_path, command=few) as one, ExitStack() as connections:
        one.load.wait_acked(100)
        for _ in range(150):
            connections.enter_context(socket.create_connection(("127.0.0.1", one.daemon.port)))
        began = time.monotonic()
        one.load.wait_acked(100)
        time.sleep(1)
        assert 503 in {reply.status for reply in one.watch.since(began, one.watch.posts)}
        connections.close()
        one.recover(time.monotonic())
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("RLIMIT_NOFILE 256, 150 idle connections", 1, audit, one.recovery_seconds))


def test_a_limit_of_descriptors_that_falls_under_load_loses_nothing(
    tmp_path: Path, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path) as one:
        one.load.wait_acked(200)
        highest = max(int(entry.name) for entry in (process_folder(one) / "fd").iterdir())
        with limited(one.daemon, resource.RLIMIT_NOFILE, highest):
            one.load.wait_acked(200)
            time.sleep(1.5)
        one.recover(time.monotonic())
        one.check_answers(restarts=True)  # new connections are reset, for there is nothing to answer them with
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("RLIMIT_NOFILE: no descriptor left", 1, audit, one.recovery_seconds))


def test_a_store_that_cannot_be_opened_anew_for_want_of_descriptors_is_once_there_are_some(
    tmp_path: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, environment=faulty.environment) as one:
        one.load.wait_acked(200)
        with limited(one.daemon, resource.RLIMIT_NOFILE, 8):
            faulty.set(Fault(sync=errno.EIO))
            time.sleep(1)
            faulty.heal()
            time.sleep(2)
            assert one.daemon.alive()
        one.recover(time.monotonic())
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("EIO on fsync, and no descriptor to open the file anew", 1, audit, one.recovery_seconds))


def test_a_file_that_may_not_grow_is_refused_and_loses_nothing(tmp_path: Path, tell: Callable[[Row], None]) -> None:
    with trial(tmp_path, pad_bytes=2000) as one:
        one.load.wait_acked(200)
        began = time.monotonic()
        with limited(one.daemon, resource.RLIMIT_FSIZE, 32_768):
            time.sleep(3)
            assert one.daemon.alive(), "SIGXFSZ ends a process that does not ignore it"
            assert one.daemon.admin("/readyz")[0] == 503
        assert any(reply.status == 503 for reply in one.watch.since(began, one.watch.posts))
        one.recover(time.monotonic())
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("RLIMIT_FSIZE: no file may grow", 1, audit, one.recovery_seconds))


@pytest.mark.slow
def test_an_address_space_that_ends_under_big_bodies_loses_nothing(tmp_path: Path, tell: Callable[[Row], None]) -> None:
    with trial(tmp_path, events_per_request=100, pad_bytes=20_000) as one:
        one.load.wait_acked(500)
        size = int((process_folder(one) / "statm").read_text().split()[0]) * resource.getpagesize()
        with limited(one.daemon, resource.RLIMIT_AS, size + (2 << 20)):
            time.sleep(3)
        lived = one.daemon.alive()
        if not lived:  # a process that finds no memory may end; its supervisor starts it again
            one.daemon.start().wait_ready()
        one.recover(time.monotonic())
        one.load.stop()
        audit = one.audit()
    assert audit.lost == 0
    assert audit.repeated <= (0 if lived else IN_FLIGHT_MAX * BATCH_EVENTS_MAX)
    fate = "the process went on" if lived else "the process ended"
    tell(Row("RLIMIT_AS: 2 MiB more than now, bodies of 2 MB", 1, audit, one.recovery_seconds, fate))


@contextmanager
def memory_group() -> Iterator[Path]:
    """Give a control group of 256 MB; skips where none can be made."""
    group = MEMORY / f"event-relay-test-{id(object())}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
    except OSError as exc:
        pytest.skip(f"no memory group of version 1 can be made here: {exc}")
    try:
        yield group
    finally:
        time.sleep(0.1)
        group.rmdir()


class BigBodies:
    """Posts bodies near the caps as fast as they are answered: raw ones, and small ones that inflate to many times."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.acked: list[bytes] = []
        self.statuses: list[int] = []
        self._numbers = iter(range(1 << 62))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: int) -> None:
        rng = seeded(worker)
        while not self._stop.is_set():
            first = make_event(f"big-{worker}", next(self._numbers))[:-1]
            pad = b"p" * 9_000 if worker % 2 else rng.randbytes(4_500).hex().encode()
            events = [b'%s,"n":%d,"pad":"%s"}' % (first, n, pad) for n in range(1500)]
            body = envelope(events)
            headers = {"statsig-api-key": "secret-test"}
            if worker % 2:
                body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
            with suppress(OSError):
                answer = post(self.url, body, headers, timeout=20)
                self.statuses.append(answer.status)
                if answer.status == 202:
                    self.acked += events


@needs_root
@pytest.mark.root
@pytest.mark.slow
def test_a_full_load_of_big_bodies_fits_in_256_mb(tmp_path: Path, tell: Callable[[Row], None]) -> None:
    with memory_group() as group:
        enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *RELAY)
        with trial(tmp_path, command=enter) as one:
            with BigBodies(one.daemon.url) as big:
                time.sleep(8)
            killed = int((group / "memory.oom_control").read_text().split("oom_kill ")[1].split()[0])
            peak = int((group / "memory.max_usage_in_bytes").read_text())
            resident = one.daemon.resident_bytes()
            assert one.daemon.alive()
            assert killed == 0
            assert set(big.statuses) <= {202, 503}, big.statuses
            assert 202 in big.statuses
            one.recover(time.monotonic())
            one.load.acked += big.acked
            audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    answers = f"{big.statuses.count(202)} taken, {big.statuses.count(503)} refused"
    more = f"{answers} of 14 MB each; group's peak {peak >> 20} MiB, resident {resident >> 20} MiB"
    tell(Row("256 MB of memory, eight posting big bodies", 1, audit, one.recovery_seconds, more))
