"""From an alert to its cure by the runbook alone: each state is provoked, seen by a real Prometheus, and mended.

A walk may only use commands that the alert's own entry quotes, as they stand there. An alert counts from the moment its
expression is true (pending): how long that must last is for the rules' unit tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import yaml
from commands.tools import lay
from daemon.harness import CountingUpstream, Daemon, envelope, free_port, make_event, post, running, wait_until
from faults.mounts import needs_root, tmpfs
from spool.disk import record

from relay.observe import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Settings = dict[str, dict[str, object]]

pytestmark = pytest.mark.slow

KEY, LANE = "secret-test", fingerprint("secret-test")
MIB = 1 << 20


class Watch:
    """A Prometheus with our rules, which scrapes every second whatever relay it is told of."""

    def __init__(self, folder: Path, port: int) -> None:
        self._targets, self._port = folder / "targets.json", port

    def see(self, daemon: Daemon) -> None:
        """Scrape this one from now on, and no other."""
        target = {"targets": [f"127.0.0.1:{daemon.admin_port}"]}
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([target]), encoding="utf-8")
        new.replace(self._targets)

    def alerts(self, daemon: Daemon) -> set[str]:
        """Give the alerts whose expression is true for a relay."""
        return {one["alertname"].removeprefix("EventRelay") for one in self._ask("ALERTS", daemon)}

    def scraped(self, daemon: Daemon) -> bool:
        """Whether there is a sample of a relay yet."""
        return bool(self._ask("event_relay_build_info", daemon))

    def _ask(self, series: str, daemon: Daemon) -> list[dict[str, str]]:
        query = f'{series}{{instance="127.0.0.1:{daemon.admin_port}"}}'
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", f"/api/v1/query?query={quote(query)}")
            return [one["metric"] for one in json.load(connection.getresponse())["data"]["result"]]
        except OSError:  # it is not up yet
            return []
        finally:
            connection.close()


@pytest.fixture(scope="module")
def watch(deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    rules = (deploy / "prometheus" / "rules.yml").read_text(encoding="utf-8").replace("interval: 30s", "interval: 1s")
    (folder / "rules.yml").write_text(rules, encoding="utf-8")
    (folder / "targets.json").write_text("[]", encoding="utf-8")
    found = [{"files": [str(folder / "targets.json")], "refresh_interval": "1s"}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [{"job_name": "event-relay", "file_sd_configs": found}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Watch(folder, port)
    finally:
        process.terminate()
        process.wait(30)


class Walk:
    """One relay with something wrong, an alert about it, and the entry that its link leads to."""

    def __init__(self, watch: Watch, daemon: Daemon, alert: str, entry: str) -> None:
        self.daemon = daemon
        self._watch, self._alert, self._entry = watch, alert, entry

    def wait_alert(self) -> None:
        wait_until(f"{self._alert} is alerted", lambda: self._alert in self._alerts(), seconds=40)

    def wait_quiet(self) -> None:
        wait_until(f"{self._alert} rests", lambda: self._alert not in self._alerts(), seconds=40)

    def wait_scraped(self) -> None:
        wait_until("it is scraped", lambda: self._watch.scraped(self.daemon), seconds=40)

    def _alerts(self) -> set[str]:
        return self._watch.alerts(self.daemon)

    def reads(self, words: str) -> None:
        """Read on at words that the entry has."""
        assert words in re.sub(r"\s+", " ", self._entry), f"the entry of {self._alert} does not say {words!r}"

    def does(self, command: str, *, code: int = 0, **placeholders: str) -> str:
        """Run a command as the entry quotes it, its placeholders filled in; gives what it printed."""
        self.reads(f"`{command}`")
        for name, value in placeholders.items():
            command = re.sub(rf"\b{name}\b", value, command)
        settings = f"--config {shlex.quote(str(self.daemon.config_file))}"
        command = re.sub(r"^relay [^<>]*", rf"\g<0> {settings} ", command)
        search = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # noqa: PTH120
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.daemon.folder, env=os.environ | {"PATH": search, "KEY": KEY},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def walk(watch: Watch, deploy: Path, tmp_path: Path) -> Callable[..., Walk]:
    """Prepare a relay below a folder of its own, and the entry of an alert."""
    runbook = (deploy / "runbook.md").read_text(encoding="utf-8")

    def prepare(alert: str, upstream: CountingUpstream, settings: Settings | None = None) -> Walk:
        entry = runbook.split(f"### EventRelay{alert}\n")[1].split("\n### ")[0]
        daemon = Daemon(tmp_path, upstream.url, settings=settings)
        watch.see(daemon)
        return Walk(watch, daemon, alert, entry)

    return prepare


@contextmanager
def walking(walk: Walk) -> Iterator[None]:
    """Let the relay run, and end with its alert at rest and its books in order."""
    with running(walk.daemon):
        yield
        walk.wait_quiet()


def send(daemon: Daemon, name: str, events: int = 1) -> None:
    for number in range(events):
        assert post(daemon.url, envelope([make_event(name, number)])).accepted


def test_a_relay_that_is_down_is_found_by_its_settings_and_comes_back(walk: Callable[..., Walk]) -> None:
    with CountingUpstream() as upstream:
        down = walk("Down", upstream, {"queue": {"bytes_maxx": "1GiB"}})
        down.daemon.start()
        assert down.daemon.process
        assert down.daemon.process.wait(20) == 2
        down.wait_alert()
        down.reads("Exit code 2: settings or folder, the last lines say which")
        assert "bytes_maxx" in down.daemon.log
        down.does("relay check-config --config FILE", code=2, FILE=str(down.daemon.config_file))
        del down.daemon.settings["queue"]["bytes_maxx"]
        with walking(down):
            down.does("relay check-config --config FILE", FILE=str(down.daemon.config_file))


def test_a_key_that_was_revoked_has_its_backlog_sent_under_another(walk: Callable[..., Walk]) -> None:
    with CountingUpstream() as upstream:
        parked = walk("UpstreamAuthFailing", upstream)
        with walking(parked):
            send(parked.daemon, "before")
            parked.daemon.wait_drained()
            parked.wait_scraped()  # once without a refusal: an increase starts from something
            upstream.fail(401)
            send(parked.daemon, "revoked", 5)
            parked.wait_alert()
            assert LANE in parked.does("relay queue lanes")
            printed = parked.does('printf %s "$KEY" | sha256sum | cut -c1-8').strip()
            assert printed == LANE
            upstream.heal()
            (parked.daemon.folder / "new-key").write_text("secret-new\n", encoding="utf-8")
            parked.does("relay queue rekey LANE < FILE", LANE=LANE, FILE="new-key")
            assert len(upstream.wait_events(6, 5)) == 6
            assert dict(upstream.accepted[-1].received.headers)["statsig-api-key"] == "secret-new"


def test_a_queue_that_does_not_drain_says_why_and_drains_when_that_is_mended(
    walk: Callable[..., Walk], tmp_path: Path
) -> None:
    lay(tmp_path, record(KEY, accepted_at_ms=int((time.time() - 1200) * 1000)))
    with CountingUpstream() as upstream:
        upstream.close()
        stuck = walk("NotDraining", upstream)
        with walking(stuck):
            stuck.wait_alert()
            stuck.reads("`connect` | no connection")
            assert "cannot be reached" in stuck.does("relay doctor", code=1)
            stuck.reads("It resumes by itself within the back-off")
            upstream.open()
            stuck.daemon.wait_drained()


def test_an_event_that_waits_for_too_long_is_found_in_the_lane_that_backs_off(
    walk: Callable[..., Walk], tmp_path: Path
) -> None:
    lay(tmp_path, record(KEY, accepted_at_ms=int((time.time() - 1200) * 1000)))
    with CountingUpstream() as upstream:
        upstream.fail(429)
        late = walk("OldestEventTooOld", upstream)
        with walking(late):
            late.wait_alert()
            late.reads("`backing_off` has upstream's reason beside it")
            wait_until("it backs off", lambda: "backing_off" in late.does("relay queue lanes"))
            assert "429" in late.does("relay queue lanes")
            upstream.heal()
            late.daemon.wait_drained()


def test_a_queue_that_dead_letters_fill_is_emptied_of_them(walk: Callable[..., Walk]) -> None:
    queue = {"bytes_max": "64MiB", "dead_letter_bytes_max": "64MiB"}
    with CountingUpstream() as upstream:
        upstream.fail(400)
        full = walk("QueueAlmostFull", upstream, {"queue": queue})
        with walking(full):
            while (held := full.daemon.status().queue).fill() < 0.92:
                text = os.urandom(200 << 10).hex().encode()
                post(full.daemon.url, b'{"events":[{"eventName":"large","value":"%s"}]}' % text)
            full.wait_alert()
            assert held.dead_events, held
            assert "dead letters" in full.does("relay queue stats")
            full.does("relay dlq export > dead-letters.jsonl")
            assert (full.daemon.folder / "dead-letters.jsonl").read_text().count("\n") >= held.dead_events
            full.does("relay dlq purge --all --yes")


def test_a_queue_that_fills_behind_a_lane_somebody_paused_is_let_go(walk: Callable[..., Walk]) -> None:
    queue = {"bytes_max": "64MiB"}
    with CountingUpstream() as upstream:
        full = walk("QueueAlmostFull", upstream, {"queue": queue})
        with walking(full):
            send(full.daemon, "first")
            full.daemon.wait_drained()
            upstream.fail(503)
            send(full.daemon, "held")
            subprocess.run(
                [sys.executable, "-m", "relay", "queue", "pause", LANE, "--config", str(full.daemon.config_file)],
                check=True, capture_output=True,
            )  # fmt: skip
            upstream.heal()
            while full.daemon.status().queue.fill() < 0.92:
                text = os.urandom(200 << 10).hex().encode()
                body = b'{"events":[{"eventName":"large","value":"%s"}]}' % text
                if not post(full.daemon.url, body, {"statsig-api-key": KEY}).accepted:
                    break
            full.wait_alert()
            assert "paused" in full.does("relay queue lanes")
            full.does("relay queue resume LANE", LANE=LANE)
            full.daemon.wait_drained()


def test_a_lane_that_somebody_paused_and_forgot_is_resumed_and_one_without_its_key_gets_another(
    walk: Callable[..., Walk],
) -> None:
    with CountingUpstream() as upstream:
        held = walk("LanePaused", upstream)
        with walking(held):
            for cure in ("resume", "rekey"):
                upstream.fail(503)
                send(held.daemon, cure, 3)
                held.does("relay queue pause LANE", LANE=LANE)
                upstream.heal()
                held.wait_alert()
                listed = held.does("relay queue lanes")
                assert LANE in listed
                assert "paused" in listed
                assert held.does('printf %s "$KEY" | sha256sum | cut -c1-8').strip() == LANE
                held.does("relay queue export --lane LANE > lane.jsonl", LANE=LANE)
                assert (held.daemon.folder / "lane.jsonl").read_text().count("\n") == 3
                lane = LANE
                if cure == "rekey":
                    (held.daemon.folder / "new-key").write_text("secret-new\n", encoding="utf-8")
                    held.does("relay queue rekey LANE < FILE", LANE=LANE, FILE="new-key")
                    lane = fingerprint("secret-new")
                held.does("relay queue resume LANE", LANE=lane)
                held.daemon.wait_drained()
            assert dict(upstream.accepted[-1].received.headers)["statsig-api-key"] == "secret-new"


def test_dead_letters_are_listed_shown_replayed_and_purged_by_their_reason(walk: Callable[..., Walk]) -> None:
    with CountingUpstream() as upstream:
        upstream.fail(400)
        dead = walk("DeadLetters", upstream)
        with walking(dead):
            send(dead.daemon, "refused", 4)
            wait_until("all are dead", lambda: dead.daemon.status().queue.dead_events == 4)
            dead.wait_alert()
            listed = dead.does("relay dlq list")
            assert "rejected" in listed
            first = re.search(r"^ *(\d+) ", listed, re.MULTILINE)
            assert first, listed
            assert "HTTP 400" in dead.does("relay dlq show ID", ID=first[1])
            dead.does("relay dlq export --reason REASON > dead-letters.jsonl", REASON="rejected")
            assert (dead.daemon.folder / "dead-letters.jsonl").read_text().count("\n") == 4
            upstream.heal()
            dead.does("relay dlq replay --reason REASON", REASON="rejected")
            assert len(upstream.wait_events(4)) == 4
            upstream.fail(400)
            send(dead.daemon, "refused again")
            wait_until("it is dead", lambda: dead.daemon.status().queue.dead_events == 1)
            dead.does("relay dlq purge --reason REASON --yes", REASON="rejected")
            assert dead.daemon.status().queue.dead_events == 0


@needs_root
def test_a_disk_that_others_fill_is_told_from_one_that_the_queue_fills(
    walk: Callable[..., Walk], tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "disk", 256 * MIB) as disk, CountingUpstream() as upstream:
        low = walk("DiskAlmostFull", upstream, {"queue": {"directory": str(disk / "queue"), "bytes_max": "64MiB"}})
        with walking(low):
            with (disk / "somebody-else-s").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, 200 * MIB)
            low.wait_alert()
            metrics = low.daemon.metrics()
            used = metrics.total("queue_disk_size_bytes") - metrics.total("queue_disk_free_bytes")
            low.reads(
                "`event_relay_queue_bytes` against `event_relay_queue_disk_size_bytes - event_relay_queue_disk_free"
            )
            assert metrics.total("queue_bytes") < used / 10
            assert post(low.daemon.url, envelope([make_event("refused", 1)])).status == 503
            low.reads("Somebody else's files: remove those.")
            (disk / "somebody-else-s").unlink()
            wait_until("it takes events", lambda: post(low.daemon.url, envelope([make_event("taken", 1)])).accepted)
            low.daemon.wait_drained()
