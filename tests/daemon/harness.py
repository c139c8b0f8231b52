"""The real daemon in its own process, an upstream that counts, a load that remembers, and the audit of both."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from relay.admin.report import Report
from relay.admin.server import SCRAPE_KEPT_SECONDS
from relay.commands.sink import Failure, Received, Sink
from relay.config import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from relay.observe import Snapshot

RELAY = (sys.executable, "-m", "relay")
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 20.0


def free_port() -> int:
    """Give a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def seeded(seed: int) -> Random:
    """Give chance that can be repeated."""
    return Random(seed)  # noqa: S311 - nothing secret is drawn from it


def wait_until(what: str, holds: object, *, seconds: float = 20.0) -> None:
    """Wait until calling `holds` gives something true; fails with `what` after `seconds`."""
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"after {seconds} s still not so: {what}"
        time.sleep(0.01)


# ── the daemon ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (sample.name.removeprefix("event_relay_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def total(self, name: str, **labels: str) -> float:
        """Add up a metric over the label values that are not given; fails where it does not exist."""
        values = [v for n, have, v in self._samples if n == name and labels.items() <= have.items()]
        assert values, f"no metric {name} {labels}"
        return sum(values)

    def check_conservation(self) -> None:
        """Every event that came in is delivered, dead or queued; fails with the numbers where one is missing."""
        names = ("queue_recovered_events_total", "queue_enqueued_events_total")
        leaves = ("queue_acked_events_total", "dead_lettered_events_total", "queue_events")
        numbers = {name: self.total(name) for name in (*names, *leaves)}
        assert sum(numbers[n] for n in names) == sum(numbers[n] for n in leaves), numbers
        entered = ("dead_letter_recovered_events_total", "dead_lettered_events_total")
        left = ("dead_letter_replayed_events_total", "dropped_events_total", "dead_letter_events")
        dead = {name: self.total(name) for name in (*entered, *left)}
        assert sum(dead[n] for n in entered) == sum(dead[n] for n in left), dead
        assert self.total("conservation_drift_events") == 0


class Daemon:
    """`relay run` with its configuration, queue and log below one folder; may be started, ended and started again."""

    def __init__(
        self,
        folder: Path,
        upstream_url: str,
        *,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        command: Sequence[str] = RELAY,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port, self.admin_port = free_port(), free_port()
        self.queue_folder = folder / "queue"
        self.config_file = folder / "relay.toml"
        self.log_file = folder / "relay.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = command
        self.environment = dict(environment or {})
        self.settings: dict[str, dict[str, object]] = {
            "listen": {"address": f"127.0.0.1:{self.port}"},
            "queue": {"directory": str(self.queue_folder)},
            "upstream": {"url": upstream_url, "retry_seconds_min": 0.05, "retry_seconds_max": 0.2},
            "admin": {"address": f"127.0.0.1:{self.admin_port}"},
            "log": {"format": "json"},
        }
        for section, keys in (settings or {}).items():
            self.settings.setdefault(section, {}).update(keys)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/log_event"

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def start(self) -> Self:
        """Start the process; returns at once."""
        assert self.process is None or self.process.poll() is not None, "the daemon runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(_as_toml(self.settings))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")} | self.environment
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "run", "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        return self

    def wait_ready(self, seconds: float = START_SECONDS_MAX) -> Self:
        """Wait until events can be accepted durably."""
        wait_until(f"ready; its log:\n{self.log}", self._ready_or_dead, seconds=seconds)
        assert self.alive(), f"the daemon ended with {self.process and self.process.returncode}:\n{self.log}"
        return self

    def _ready_or_dead(self) -> bool:
        if not self.alive():
            return True
        with suppress(OSError, http.client.HTTPException):
            return self.admin("/readyz")[0] == 200
        return False

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def admin(self, path: str) -> tuple[int, str]:
        """GET a path of the admin port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Metrics:
        """Scrape; waits first, for the daemon answers scrapes that follow each other at once alike."""
        time.sleep(SCRAPE_KEPT_SECONDS)
        status, text = self.admin("/metrics")
        assert status == 200, text
        return Metrics(text)

    def status(self) -> Snapshot:
        status, text = self.admin("/status")
        assert status == 200, text
        return msgspec.json.decode(text, type=Report).snapshot

    def queued(self) -> int:
        """Events on disk that are not delivered."""
        return self.status().queue.events

    def wait_counted(self) -> None:
        """Wait until what an earlier life left is in the figures, which happens behind the open door."""
        wait_until("the queue is counted", lambda: not self.status().queue.recovering)

    def wait_drained(self, seconds: float = 30.0) -> None:
        """Wait until nothing is queued any more, of earlier lives neither."""
        wait_until("the queue is empty", self._drained, seconds=seconds)

    def _drained(self) -> bool:
        queue = self.status().queue
        return not queue.recovering and queue.events == 0

    def kill9(self) -> None:
        """End it as the out-of-memory killer does."""
        assert self.process is not None
        _signal_down(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)

    def sigterm(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """Check conservation, ask it to stop, and give its exit code; fails where that takes longer."""
        assert self.process is not None
        self.metrics().check_conservation()
        _signal_down(self.process.pid, signal.SIGTERM)
        return self.process.wait(seconds)

    def resident_bytes(self) -> int:
        """Memory the process holds now."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def _signal_down(pid: int, number: signal.Signals) -> None:
    """Signal the process, or the one inside it where it is a tracer: that ends with what it traces."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    inner = children.read_text().split() if children.exists() else []
    for target in inner or [pid]:
        with suppress(ProcessLookupError):
            os.kill(int(target), number)


@contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Run the daemon; at the end of a test that passed, conservation must hold and a stop must be clean."""
    try:
        daemon.start().wait_ready()
        yield daemon
        if daemon.alive():
            assert daemon.sigterm() == 0, daemon.log
    finally:
        if daemon.alive():
            daemon.kill9()


def _as_toml(settings: Mapping[str, Mapping[str, object]]) -> str:
    """JSON's strings, numbers, booleans and arrays of them are TOML's too."""
    lines = []
    for section, keys in settings.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


# ── the upstream ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Delivery:
    """One request that the upstream saw, and when."""

    received: Received
    at: float
    """Monotonic seconds, or what the upstream was told to stamp with."""


class CountingUpstream:
    """The sink of `relay sink` in a thread of its own, on one port for its life; keeps every request."""

    def __init__(self, stamp: Callable[[], float] = time.monotonic) -> None:
        self.deliveries: list[Delivery] = []
        self._stamp = stamp
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream", daemon=True)
        self._address = Address("127.0.0.1", free_port())
        self._sink: Sink | None = None
        self.url = f"http://{self._address}/v1/log_event"

    def __enter__(self) -> Self:
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self) -> None:
        """Listen; anew after `close`."""
        self._sink = Sink(self._receive)
        self._call(self._sink.start(self._address))

    def close(self) -> None:
        """Refuse connections, as an upstream does that is down."""
        if self._sink is not None:
            self._call(self._sink.stop())
            self._sink = None

    def fail(self, status: int, share: float = 1.0) -> None:
        """Answer with `status` until `heal`."""
        assert self._sink is not None
        self._sink.failure = Failure(status, share)

    def heal(self) -> None:
        assert self._sink is not None
        self._sink.failure = None

    def delay(self, seconds: float) -> None:
        assert self._sink is not None
        self._sink.delay_seconds = seconds

    def hold(self) -> None:
        """Take requests and answer none until `release`."""
        assert self._sink is not None
        self._loop.call_soon_threadsafe(self._sink.hold)

    def release(self) -> None:
        assert self._sink is not None
        self._loop.call_soon_threadsafe(self._sink.release)

    @property
    def accepted(self) -> list[Delivery]:
        """What was answered with success."""
        return [d for d in list(self.deliveries) if not d.received.detail]

    @property
    def events(self) -> list[bytes]:
        """Raw bytes of every event that was answered with success, in order."""
        return [event for d in self.accepted for event in d.received.events]

    def wait_events(self, count: int, seconds: float = 20.0) -> list[bytes]:
        """Wait until at least so many events arrived, and give them."""
        wait_until(f"{count} events at the upstream", lambda: len(self.events) >= count, seconds=seconds)
        return self.events

    def _receive(self, received: Received) -> None:
        self.deliveries.append(Delivery(received, self._stamp()))

    def _call(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


# ── the load ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answer:
    """What the relay answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def accepted(self) -> bool:
        return self.status == 202 and json.loads(self.body).get("success") is True


def post(url: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout: float = 10.0) -> Answer:
    """POST once, on a connection of its own; the default headers carry a key."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {"statsig-api-key": "secret-test"} if headers is None else headers)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def make_event(name: str, number: int) -> bytes:
    """Give an event that no other equals, about as large as an SDK's."""
    return json.dumps(
        {
            "eventName": "purchase",
            "value": f"{name}-{number}",
            "time": 1_790_000_000_000 + number,
            "user": {"userID": f"user-{number % 997}", "custom": {"plan": "pro", "seats": number % 7}},
            "metadata": {"id": f"{name}-{number}", "page": f"/checkout/{number % 31}"},
        }
    ).encode()


def envelope(events: Iterable[bytes]) -> bytes:
    """Give the body of a request."""
    return b'{"events":[' + b",".join(events) + b'],"statsigMetadata":{"sdkType":"test","sdkVersion":"1"}}'


@dataclass
class Load:
    """Threads that post as fast as they are answered and remember which events were acknowledged."""

    url: str
    name: str = "load"
    threads: int = 4
    events_per_request: int = 10
    acked: list[bytes] = field(default_factory=list)
    """Raw bytes of each event whose request was answered 202 with success."""
    sent: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were not acknowledged, by status or kind of error."""
    on_ack: Callable[[list[bytes]], None] = lambda _: None
    """Called with the events of each acknowledged request, in the thread that read the answer."""

    def __post_init__(self) -> None:
        self._numbers = iter(range(1 << 62))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._workers: list[threading.Thread] = []

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Keep posting inside the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        self._stop.clear()
        self._workers = [threading.Thread(target=self._work, name=f"load-{n}") for n in range(self.threads)]
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def wait_acked(self, count: int, seconds: float = 20.0) -> None:
        """Wait until at least so many more events were acknowledged than now."""
        goal = len(self.acked) + count
        wait_until(f"{goal} acknowledged, {self.refused}", lambda: len(self.acked) >= goal, seconds=seconds)

    def post_one(self) -> bool:
        """Send one request; tells whether it was acknowledged."""
        events = self._make_events()
        return self._account(events, lambda: post(self.url, envelope(events)))

    def _make_events(self) -> list[bytes]:
        with self._lock:
            numbers = [next(self._numbers) for _ in range(self.events_per_request)]
            self.sent += len(numbers)
        return [make_event(self.name, number) for number in numbers]

    def _work(self) -> None:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        while not self._stop.is_set():
            events = self._make_events()
            if not self._account(events, lambda e=events: _post_on(connection, parts.path, envelope(e))):
                connection.close()
                time.sleep(0.02)
        connection.close()

    def _account(self, events: list[bytes], send: object) -> bool:
        assert callable(send)
        try:
            answer: Answer = send()
        except (OSError, http.client.HTTPException) as exc:
            self.refused[type(exc).__name__] += 1
            return False
        if answer.accepted:
            self.on_ack(events)
            self.acked.extend(events)
            return True
        self.refused[str(answer.status)] += 1
        return False


def _post_on(connection: http.client.HTTPConnection, path: str, body: bytes) -> Answer:
    connection.request("POST", path, body, {"statsig-api-key": "secret-test", "content-type": "application/json"})
    answer = connection.getresponse()
    return Answer(answer.status, {}, answer.read())


# ── the audit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Audit:
    """What became of the acknowledged events."""

    acked: int
    missing: list[bytes]
    """Acknowledged and never arrived."""
    duplicates: Counter[bytes]
    """Event → times it arrived beyond the first."""

    @property
    def lost(self) -> int:
        """Events acknowledged that never arrived."""
        return len(self.missing)

    @property
    def repeated(self) -> int:
        """Arrivals beyond each event's first."""
        return self.duplicates.total()

    @classmethod
    def of(cls, acked: Iterable[bytes], arrived: Iterable[bytes]) -> Audit:
        counts = Counter(arrived)
        acked = list(acked)
        return cls(
            acked=len(acked),
            missing=[event for event in acked if not counts[event]],
            duplicates=Counter({event: n - 1 for event, n in counts.items() if n > 1}),
        )


def captured_requests(folder: Path) -> list[tuple[str, dict[str, object]]]:
    """Read the recorded requests of real SDKs: (name, request)."""
    return [
        (re.sub(r"\.json$", "", str(file.relative_to(folder))), json.loads(file.read_text()))
        for file in sorted(folder.rglob("*.json"))
    ]
