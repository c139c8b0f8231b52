"""Starting and stopping the real daemon: what is left waits for the next start, and a wrong start says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from daemon.harness import RELAY, Audit, CountingUpstream, Daemon, Load, envelope, make_event, post, running, wait_until

from relay.config.kinds import Size
from relay.config.settings import SETTINGS

DRAIN_SECONDS_MAX = 2.0


def test_a_stop_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with CountingUpstream() as upstream:
        daemon = Daemon(tmp_path, upstream.url)
        load = Load(daemon.url)
        with running(daemon), load.running():
            load.wait_acked(300)
            assert daemon.sigterm() == 0, daemon.log
        with running(daemon):
            daemon.wait_drained()
        audit = Audit.of(load.acked, upstream.events)
    assert (audit.lost, audit.repeated) == (0, 0)


def test_what_a_stop_cannot_deliver_in_time_the_next_start_delivers(tmp_path: Path) -> None:
    with CountingUpstream() as upstream:
        upstream.fail(503)
        daemon = Daemon(tmp_path, upstream.url, settings={"shutdown": {"drain_seconds_max": DRAIN_SECONDS_MAX}})
        load = Load(daemon.url)
        with running(daemon):
            assert all(load.post_one() for _ in range(20))
            began = time.monotonic()
            assert daemon.sigterm() == 0, daemon.log
            assert time.monotonic() - began < DRAIN_SECONDS_MAX + 2
        assert upstream.events == []
        upstream.heal()
        with running(daemon):
            assert daemon.metrics().total("queue_recovered_events_total") == 200
            daemon.wait_drained()
        audit = Audit.of(load.acked, upstream.events)
    assert (audit.acked, audit.lost, audit.repeated) == (200, 0, 0)


def test_a_stop_drains_what_upstream_takes(tmp_path: Path) -> None:
    with CountingUpstream() as upstream:
        upstream.hold()
        daemon = Daemon(tmp_path, upstream.url)
        with running(daemon):
            assert post(daemon.url, envelope([make_event("drain", n) for n in range(50)])).accepted
            daemon.metrics().check_conservation()
            assert daemon.process
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert daemon.alive()
            upstream.release()
            assert daemon.process.wait(10) == 0
        assert len(upstream.events) == 50


def test_the_second_signal_stops_waiting(tmp_path: Path) -> None:
    with CountingUpstream() as upstream:
        upstream.hold()
        daemon = Daemon(tmp_path, upstream.url, settings={"shutdown": {"drain_seconds_max": 60}})
        with running(daemon):
            assert post(daemon.url, envelope([make_event("impatient", 1)])).accepted
            assert daemon.process
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert daemon.alive()
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(5) == 0, daemon.log
        upstream.release()
        with running(daemon):
            upstream.wait_events(1)
            daemon.wait_drained()


def test_a_second_daemon_on_the_same_folder_says_who_holds_it_and_exits_1(tmp_path: Path) -> None:
    with CountingUpstream() as upstream, running(Daemon(tmp_path / "a", upstream.url)) as first:
        second = Daemon(tmp_path / "b", upstream.url, settings={"queue": {"directory": str(first.queue_folder)}})
        assert second.start().process
        assert second.process.wait(10) == 1, second.log
        assert first.process
        assert str(first.process.pid) in second.log
        assert str(first.queue_folder) in second.log
        assert post(first.url, envelope([make_event("first", 1)])).accepted
        first.wait_drained()


def test_a_port_in_use_is_named_and_exits_1(tmp_path: Path) -> None:
    with CountingUpstream() as upstream, running(Daemon(tmp_path / "a", upstream.url)) as first:
        second = Daemon(tmp_path / "b", upstream.url, settings={"listen": {"address": f"127.0.0.1:{first.port}"}})
        assert second.start().process
        assert second.process.wait(10) == 1, second.log
        assert f"127.0.0.1:{first.port}" in second.log
        assert "Traceback" not in second.log


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[queue]\nbytes_maxx = 1\n", ["queue.bytes_maxx", "queue.bytes_max"]),
        ("[qeue]\n", ["qeue", "queue"]),
        ('[listen]\naddress = "nowhere"\n', ["listen.address", "nowhere"]),
        ('[queue]\nbytes_max = "much"\n', ["queue.bytes_max", "much"]),
        ("[upstream]\nin_flight_max = 0\n", ["upstream.in_flight_max", "0"]),
        ("[listen\n", ["relay.toml"]),
    ],
)
def test_a_bad_setting_is_named_with_what_was_meant_and_exits_2(
    tmp_path: Path, settings: str, words: list[str]
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(settings)
    done = subprocess.run(
        [*RELAY, "run", "--config", str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["relay.toml"], "a refused start leaves no trace"


def test_the_smallest_queue_that_the_settings_allow_takes_events_and_delivers_them(tmp_path: Path) -> None:
    size = SETTINGS["queue.bytes_max"]
    assert isinstance(size, Size)
    least = {"queue": {"bytes_max": size.at_least}}
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url, settings=least)) as daemon:
        assert post(daemon.url, envelope([make_event("small", 1)])).accepted
        daemon.wait_drained()


def test_every_bad_setting_is_reported_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"RELAY_QUEUE__BYTES_MAXX": "1", "RELAY_UPSTREAM__COMPRESSION": "lzma"}
    done = subprocess.run(
        [*RELAY, "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert any("bytes_max" in line.lower() for line in lines)
    assert any("lzma" in line and "gzip" in line for line in lines)


def test_the_folder_and_its_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url)) as daemon:
        assert post(daemon.url, envelope([make_event("mine", 1)])).accepted
        found = list(daemon.queue_folder.rglob("*"))
        daemon.wait_drained()
        assert found
        for path in found:
            if path.exists():
                assert path.stat().st_mode & 0o077 == 0, path


def test_the_daemon_never_blocks_its_event_loop(tmp_path: Path) -> None:
    guarded = (sys.executable, str(Path(__file__).parent / "guarded_relay.py"))
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url, command=guarded)) as daemon:
        load = Load(daemon.url)
        upstream.fail(503, 0.3)
        with load.running():
            load.wait_acked(300)
            daemon.status()
            for path in ("/", "/livez", "/readyz", "/startupz", "/metrics"):
                assert daemon.admin(path)[0] == 200
        upstream.heal()
        daemon.wait_drained()
        assert load.refused == {}
        assert daemon.sigterm() == 0
    assert "BlockingError" not in daemon.log
    assert "Blocking call" not in daemon.log


def test_the_guard_of_the_event_loop_has_teeth(tmp_path: Path) -> None:
    guarded = (sys.executable, str(Path(__file__).parent / "guarded_relay.py"), "--prove")
    done = subprocess.run(guarded, capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path)
    assert "Blocking call to os.fsync" in done.stderr


def test_events_arrive_while_the_daemon_has_no_upstream_at_first(tmp_path: Path) -> None:
    with CountingUpstream() as upstream:
        upstream.close()
        with running(Daemon(tmp_path, upstream.url)) as daemon:
            event = make_event("patient", 1)
            assert post(daemon.url, envelope([event])).accepted
            wait_until("an attempt failed", lambda: daemon.metrics().total("forward_requests_total") > 0)
            upstream.open()
            assert upstream.wait_events(1) == [event]
            daemon.wait_drained()
