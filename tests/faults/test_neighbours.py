"""Others at the queue's folder: a mount without writing, a second opener, the reader tools, and a clock that jumps."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import RELAY, CountingUpstream, Daemon, running, wait_until
from faults.mounts import needs_root, tmpfs
from faults.rig import Row, trial

from relay.spool.table import FILE_NAME, FORMAT, WAL_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faults.injector import FaultyDisk

HOUR = 3600.0


@needs_root
@pytest.mark.root
def test_a_folder_that_cannot_be_written_is_named_and_exits_1(tmp_path: Path) -> None:
    with CountingUpstream() as upstream, tmpfs(tmp_path / "queue", 16 << 20) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        daemon = Daemon(tmp_path, upstream.url).start()
        assert daemon.process is not None
        assert daemon.process.wait(20) == 1
    assert str(disk) in daemon.log
    assert "Read-only file system" in daemon.log
    assert "Traceback" not in daemon.log


@needs_root
@pytest.mark.root
def test_a_folder_in_memory_is_announced_in_the_log_the_status_and_a_metric(tmp_path: Path) -> None:
    with (
        CountingUpstream() as upstream,
        tmpfs(tmp_path / "queue", 128 << 20),
        running(Daemon(tmp_path, upstream.url)) as daemon,
    ):
        wait_until("the log says so", lambda: '"queue_is_volatile"' in daemon.log)
        assert daemon.status().queue.volatile
        assert daemon.metrics().total("queue_volatile") == 1


def test_a_queue_that_a_later_release_wrote_exits_2_and_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "queue" / "spool" / FILE_NAME
    with CountingUpstream() as upstream:
        with running(Daemon(tmp_path, upstream.url)):
            pass
        with sqlite3.connect(file) as connection:
            connection.execute(f"PRAGMA user_version={FORMAT + 1}")
        connection.close()
        before = {one.name: one.read_bytes() for one in file.parent.glob(FILE_NAME + "*")}
        daemon = Daemon(tmp_path, upstream.url).start()
        assert daemon.process is not None
        assert daemon.process.wait(20) == 2
    assert "run the newer release again" in daemon.log
    assert {one.name: one.read_bytes() for one in file.parent.glob(FILE_NAME + "*")} == before


def test_a_second_opener_that_holds_the_database_s_lock_delays_but_loses_nothing(
    tmp_path: Path, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path) as one:
        one.load.wait_acked(200)
        other = sqlite3.connect(one.daemon.queue_folder / "spool" / FILE_NAME, timeout=10, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(3)
        other.execute("ROLLBACK")
        one.recover(time.monotonic())
        other.close()  # a shell that somebody left open holds nobody up
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("a second opener holds SQLite's lock for 3 s", 1, audit, one.recovery_seconds))


def test_a_second_relay_is_turned_away_and_the_first_one_goes_on(tmp_path: Path) -> None:
    with trial(tmp_path) as one:
        one.load.wait_acked(100)
        second = Daemon(tmp_path / "second", one.upstream.url, settings={"queue": dict(one.daemon.settings["queue"])})
        second.start()
        assert second.process is not None
        assert second.process.wait(20) == 1
        assert "is held by process" in second.log
        one.load.wait_acked(100)
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)


@pytest.mark.slow
def test_the_reader_tools_beside_a_busy_relay_leave_its_log_bounded_and_its_answers_in_time(
    tmp_path: Path, tell: Callable[[Row], None]
) -> None:
    runs = {"export": 0, "stats": 0, "verify": 0}
    stop = threading.Event()
    with trial(tmp_path, upstream_down=True, pad_bytes=4000) as one:

        def look(verb: str) -> None:
            config = str(one.daemon.config_file)
            while not stop.is_set():
                subprocess.run([*RELAY, "queue", verb, "--config", config], check=True, capture_output=True)
                runs[verb] += 1

        one.load.wait_acked(300)
        tools = [threading.Thread(target=look, args=(verb,)) for verb in runs]
        for tool in tools:
            tool.start()
        log_bytes = 0
        until = time.monotonic() + 8
        while time.monotonic() < until:
            time.sleep(0.05)
            log_bytes = max(log_bytes, (one.daemon.queue_folder / "spool" / f"{FILE_NAME}-wal").stat().st_size)
        stop.set()
        for tool in tools:
            tool.join()
        one.check_answers()
        assert not one.load.refused, one.load.refused
        one.upstream.open()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    assert all(runs.values()), runs
    assert log_bytes < WAL_BYTES_MAX
    more = f"log up to {log_bytes / 1e6:.1f} MB, {runs}, slowest answer {one.load.slowest:.1f} s"
    tell(Row("export, stats and verify beside a busy relay", 1, audit, 0.0, more))


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["an hour ahead", "an hour back"])
def test_a_clock_that_jumps_by_an_hour_loses_delays_and_expires_nothing(
    tmp_path: Path, faulty: FaultyDisk, step: float, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, environment=faulty.environment, settings={"queue": {"age_max": 1800}}) as one:
        one.load.wait_acked(200)
        for shift in (step, 0.0):
            one.upstream.close()
            one.load.wait_acked(100)
            before = one.daemon.status().now
            faulty.set_clock(shift)
            assert abs(one.daemon.status().now - before) > HOUR / 2, "the clock did not jump"
            one.load.wait_acked(100)
            arrived = len(one.upstream.events)
            one.upstream.open()
            one.upstream.wait_events(arrived + 200, seconds=5)
            metrics = one.daemon.metrics()
            assert metrics.total("queue_oldest_event_age_seconds") >= 0
            assert metrics.total("dead_lettered_events_total") == 0
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(f"the clock steps {step:+.0f} s and back", 2, audit, one.recovery_seconds))
