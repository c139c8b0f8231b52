"""A disk that fails or dawdles under load: 503 while it does, nothing acknowledged lost, and no help needed."""

from __future__ import annotations

import errno
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon.harness import Daemon, envelope, make_event, post, seeded, wait_until
from faults.injector import Fault
from faults.rig import ANSWER_SECONDS_MAX, SLACK_SECONDS, Row, trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from daemon.harness import Audit
    from faults.injector import FaultyDisk
    from faults.rig import Trial

MORTAL = (sys.executable, str(Path(__file__).parent / "mortal_relay.py"))
DEAF = (sys.executable, str(Path(__file__).parent / "deaf_relay.py"))
NOTICE_SECONDS = 1.0
"""A commit under load has met the fault by then, and those who waited for it were told."""
FAULT_SECONDS = 2.2

FAULTS = {
    "ENOSPC on write": Fault(write=errno.ENOSPC),
    "EIO on write, half written": Fault(write=errno.EIO, torn=True),
    "EIO on fsync": Fault(sync=errno.EIO),
}
MOODS = {
    "EIO on a tenth of the writes": Fault(write=errno.EIO, odds=0.1),
    "ENOSPC on a third of the writes, half written": Fault(write=errno.ENOSPC, odds=0.3, torn=True),
    "EIO on half of the fsyncs": Fault(sync=errno.EIO, odds=0.5),
}


def fail(one: Trial, disk: FaultyDisk, fault: Fault, rng: Random) -> float:
    """Let the disk fail at a random moment, for a while; gives when that began."""
    one.load.wait_acked(100)
    time.sleep(rng.random() * 0.3)
    disk.set(fault)
    began = time.monotonic()
    time.sleep(FAULT_SECONDS + rng.random() * 0.5)
    assert disk.failed, "the fault met nothing"
    return began


def heal(one: Trial, disk: FaultyDisk) -> None:
    disk.heal()
    one.recover(time.monotonic())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_disk_is_refused_with_503_while_it_fails_and_loses_nothing(
    tmp_path: Path, faulty: FaultyDisk, name: str, tell: Callable[[Row], None], pytestconfig: pytest.Config
) -> None:
    rounds = max(1, pytestconfig.getoption("--crash-rounds") // 20)
    rng = seeded(rounds)
    with trial(tmp_path, environment=faulty.environment) as one:
        for _ in range(rounds):
            began = fail(one, faulty, FAULTS[name], rng)
            healed = time.monotonic()
            heal(one, faulty)
            posts, readies = (
                [reply for reply in replies if began + NOTICE_SECONDS < reply.ended_at < healed]
                for replies in (one.watch.posts, one.watch.readies)
            )
            assert posts, "nobody asked while the disk failed"
            assert {reply.status for reply in posts} == {503}, posts
            if "ENOSPC" not in name:  # a full disk is told by its free space, and this one has plenty
                assert {reply.status for reply in readies} == {503}, readies
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(name, rounds, audit, one.recovery_seconds))


@pytest.mark.slow
@pytest.mark.parametrize("name", MOODS)
def test_a_disk_that_fails_at_times_and_a_kill_while_it_does_lose_nothing(
    tmp_path: Path, faulty: FaultyDisk, name: str, tell: Callable[[Row], None], pytestconfig: pytest.Config
) -> None:
    rounds = max(2, pytestconfig.getoption("--crash-rounds") // 10)
    rng = seeded(rounds)
    with trial(tmp_path, environment=faulty.environment, upstream_down=True) as one:
        for _ in range(rounds):
            fail(one, faulty, MOODS[name], rng)
            one.daemon.kill9()
            faulty.heal()
            one.daemon.start().wait_ready()
            heal(one, faulty)
        one.check_answers(restarts=True)
        one.upstream.open()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(f"{name}, kill -9", rounds, audit, one.recovery_seconds))


def test_a_relay_that_does_not_hear_of_failed_commits_is_caught(
    tmp_path: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    audit = audit_deaf(tmp_path, faulty)
    assert audit.lost > 0
    tell(Row("negative control: answers whatever the disk says", 1, audit, 0.0))


def audit_deaf(tmp_path: Path, faulty: FaultyDisk) -> Audit:
    with trial(tmp_path, environment=faulty.environment, command=DEAF, upstream_down=True) as one:
        one.load.wait_acked(50)
        faulty.set(Fault(write=errno.EIO))
        one.load.wait_acked(50)
        one.daemon.kill9()
        faulty.heal()
        one.quiet()
        one.daemon.command = (sys.executable, "-m", "relay")
        one.daemon.start().wait_ready()
        one.upstream.open()
        return one.audit()


def test_a_writer_that_has_died_is_neither_live_nor_ready_and_acknowledges_nothing(tmp_path: Path) -> None:
    settings = {"listen": {"answer_seconds_max": 1}}
    daemon = Daemon(tmp_path, "http://127.0.0.1:9/v1/log_event", settings=settings, command=MORTAL)
    try:
        daemon.start().wait_ready()
        assert daemon.admin("/livez")[0] == 200
        began = time.monotonic()
        assert post(daemon.url, envelope([make_event("any", 1)])).status == 503
        assert time.monotonic() - began < 1 + SLACK_SECONDS
        for path in ("/livez", "/readyz"):
            status, text = daemon.admin(path)
            assert (status, "has died" in text) == (503, True), path
    finally:
        daemon.kill9()


@pytest.mark.slow
def test_a_slow_disk_is_answered_in_time_and_leaves_the_loop_free(
    tmp_path: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, environment=faulty.environment, threads=16, pad_bytes=2000) as one:
        one.load.wait_acked(500)
        before = one.daemon.resident_bytes()
        peak = 0
        for seconds in (1.0, 3.0):
            faulty.set(Fault(sync_seconds=seconds))
            until = time.monotonic() + 3.5
            while time.monotonic() < until:
                time.sleep(0.1)
                peak = max(peak, one.daemon.resident_bytes())
            assert faulty.delayed
        faulty.heal()
        one.recover(time.monotonic())
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    assert peak - before < 48 << 20, f"memory grew by {(peak - before) >> 20} MiB"
    grown = f"slowest answer {one.load.slowest:.1f} s, memory +{max(0, peak - before) >> 20} MiB"
    tell(Row("fsync takes 1 s, then 3 s", 2, audit, one.recovery_seconds, grown))


@pytest.mark.slow
def test_a_disk_too_slow_for_the_answer_bound_is_answered_503_at_the_bound(
    tmp_path: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, environment=faulty.environment) as one:
        one.load.wait_acked(100)
        faulty.set(Fault(sync_seconds=7))
        began = time.monotonic()
        time.sleep(5.8)
        posts = [reply for reply in one.watch.since(began, one.watch.posts) if reply.status != 202]
        assert posts
        assert all(4.5 < reply.seconds < ANSWER_SECONDS_MAX + SLACK_SECONDS for reply in posts), posts
        assert {reply.code for reply in posts} == {"commit_too_slow"}
        faulty.heal()
        one.recover(time.monotonic(), seconds=20)
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("fsync takes 7 s", 1, audit, one.recovery_seconds, f"slowest answer {one.load.slowest:.1f} s"))


@pytest.mark.slow
def test_a_disk_that_stays_broken_ends_the_process_with_a_last_word_and_the_next_start_loses_nothing(
    tmp_path: Path, faulty: FaultyDisk, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, environment=faulty.environment, upstream_down=True) as one:
        one.load.wait_acked(100)
        faulty.set(Fault(write=errno.EIO, sync=errno.EIO))
        began = time.monotonic()
        wait_until("the process gives up", lambda: not one.daemon.alive(), seconds=25)
        assert one.daemon.process is not None
        assert one.daemon.process.returncode == 1
        readies = [reply.status for reply in one.watch.since(began + NOTICE_SECONDS, one.watch.readies)]
        assert readies.count(503) > 50
        assert set(readies) <= {503, 0}, "ready, or gone, but never ready again"
        words = [json.loads(line) for line in one.daemon.log.splitlines()[-2:]]
        assert [word["event"] for word in words] == ["cannot_go_on", "stopped"], one.daemon.log[-3000:]
        assert "disk I/O error" in words[0]["error"]
        assert words[1]["undelivered_events"] > 0
        faulty.heal()
        healed = time.monotonic()
        one.daemon.start().wait_ready()
        one.recover(healed)
        one.upstream.open()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row("EIO until the process ends itself", 1, audit, one.recovery_seconds))
