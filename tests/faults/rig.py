"""The real daemon under load while a fault comes and goes: who posts, who watches, and what is counted at the end."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from daemon.harness import (
    RELAY,
    Answer,
    Audit,
    CountingUpstream,
    Daemon,
    Load,
    envelope,
    make_event,
    post,
    seeded,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

ANSWER_SECONDS_MAX: Final = 5.0
SLACK_SECONDS: Final = 0.75
"""For a machine of two cores on which everything here runs at once."""
LIVE_SECONDS_MAX: Final = 2.0
"""The loop answers a probe in less, whatever the disk does."""
IN_FLIGHT_MAX, BATCH_EVENTS_MAX = 4, 100
SETTINGS: Final = {"upstream": {"in_flight_max": IN_FLIGHT_MAX, "batch_events_max": BATCH_EVENTS_MAX}}


@dataclass(frozen=True)
class Row:
    """A line of the matrix."""

    fault: str
    rounds: int
    audit: Audit
    recovery_seconds: float
    """From the moment the fault went away to the first 202; the longest of all rounds."""
    more: str = ""

    def __str__(self) -> str:
        audit = self.audit
        return (
            f"{self.fault:<58} {self.rounds:>3} rounds {audit.acked:>7} acknowledged {audit.lost:>5} lost "
            f"{audit.repeated:>5} twice {self.recovery_seconds:>5.1f} s to recover{self.more and '  ' + self.more}"
        )


class PacedLoad(Load):
    """A load that notes how long the slowest answer took, rests between requests and may post large events."""

    def __init__(self, url: str, *, rest_seconds: float = 0.002, pad_bytes: int = 0, **settings: object) -> None:
        super().__init__(url, **settings)  # type: ignore[arg-type]
        self.slowest = 0.0
        self.made: list[bytes] = []
        self._rest_seconds = rest_seconds
        self._pad_bytes = pad_bytes
        self._random = seeded(pad_bytes)

    def _make_events(self) -> list[bytes]:
        events = super()._make_events()
        if self._pad_bytes:
            with self._lock:  # random hexadecimal digits: half of them deflate away
                pads = [self._random.randbytes(self._pad_bytes // 2).hex().encode() for _ in events]
            events = [b'%s,"pad":"%s"}' % (event[:-1], pad) for event, pad in zip(events, pads, strict=True)]
        self.made += events
        return events

    def _account(self, events: list[bytes], send: object) -> bool:
        began = time.monotonic()
        try:
            return super()._account(events, send)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(self._rest_seconds)


@dataclass(frozen=True)
class Reply:
    """One answer to a prober."""

    asked_at: float
    seconds: float
    status: int
    """0 where there was none."""
    retry_after: str = ""
    code: str = ""

    @property
    def ended_at(self) -> float:
        return self.asked_at + self.seconds


@dataclass
class Watch:
    """Asks /livez and /readyz as a kubelet does and posts as an app does, each some times a second."""

    daemon: Daemon
    lives: list[Reply] = field(default_factory=list)
    readies: list[Reply] = field(default_factory=list)
    posts: list[Reply] = field(default_factory=list)
    acked: list[bytes] = field(default_factory=list)
    made: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._numbers = iter(range(1 << 62))
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=work.__name__)
            for work in (self._ask_health, self._ask_to_take)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment: float, replies: list[Reply]) -> list[Reply]:
        """Give what was asked after a moment."""
        return [reply for reply in list(replies) if reply.asked_at >= moment]

    def wait_taken(self, since: float, seconds: float = 15.0) -> float:
        """Wait for a 202 to a request sent after a moment; gives the seconds from then to that answer."""

        def taken() -> float:
            times = [r.ended_at - since for r in self.since(since, self.posts) if r.status == 202]
            return min(times, default=0.0)

        until = time.monotonic() + seconds
        while not (found := taken()):
            assert time.monotonic() < until, self._why_not(seconds)
            time.sleep(0.01)
        return found

    def _why_not(self, seconds: float) -> str:
        ended = self.daemon.process and self.daemon.process.poll()
        return f"no 202 for {seconds} s (exit code {ended}): {self.posts[-3:]}; its log:\n{self.daemon.log[-4000:]}"

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(0.05):
            work()

    def _ask_health(self) -> None:
        for path, replies in (("/livez", self.lives), ("/readyz", self.readies)):
            began = time.monotonic()
            status = 0
            with suppress(OSError, http.client.HTTPException):
                status = self.daemon.admin(path)[0]
            replies.append(Reply(began, time.monotonic() - began, status))

    def _ask_to_take(self) -> None:
        event = make_event("watch", next(self._numbers))
        self.made.append(event)
        began = time.monotonic()
        answer = Answer(0, {}, b"")
        with suppress(OSError, http.client.HTTPException):
            answer = post(self.daemon.url, envelope([event]), {"statsig-api-key": "secret-test"}, timeout=15)
        if answer.status == 202:
            self.acked.append(event)
        code = answer.body.partition(b'"code":"')[2].partition(b'"')[0].decode()
        retry_after = answer.headers.get("retry-after", "")
        self.posts.append(Reply(began, time.monotonic() - began, answer.status, retry_after, code))


@dataclass
class Trial:
    """A daemon, its upstream, and the two that use it."""

    daemon: Daemon
    upstream: CountingUpstream
    load: PacedLoad
    watch: Watch
    recovery_seconds: float = 0.0

    def recover(self, since: float, seconds: float = 15.0) -> None:
        """Wait until events are taken again, and ready says so; the fault went away at `since`."""
        self.recovery_seconds = max(self.recovery_seconds, self.watch.wait_taken(since, seconds))
        wait_until("ready again", lambda: self.daemon.admin("/readyz")[0] == 200, seconds=seconds)

    def restart_after_kill(self) -> None:
        self.daemon.kill9()
        self.daemon.start().wait_ready()

    def quiet(self) -> None:
        """Post no more."""
        self.load.stop()
        self.watch.stop()

    def audit(self, seconds: float = 60.0) -> Audit:
        """Stop posting, have everything delivered, check the books, and compare."""
        self.quiet()
        self.daemon.wait_drained(seconds)
        self.daemon.metrics().check_conservation()
        return Audit.of([*self.load.acked, *self.watch.acked], self.upstream.events)

    def check_answers(self, *, since: float = 0.0, restarts: bool = False) -> None:
        """Every answer came within the bound; refusals were 503 with Retry-After; the process was alive all along."""
        posts = self.watch.since(since, self.watch.posts)
        slowest = max(*(reply.seconds for reply in posts), self.load.slowest)
        assert slowest <= ANSWER_SECONDS_MAX + SLACK_SECONDS, f"an answer took {slowest} s"
        allowed = {202, 503, 0} if restarts else {202, 503}
        assert {reply.status for reply in posts} <= allowed, posts
        assert all(reply.retry_after.isdigit() for reply in posts if reply.status == 503), posts
        refused = set(self.load.refused)
        assert restarts or refused <= {"503"}, self.load.refused
        lives = self.watch.since(since, self.watch.lives)
        assert restarts or all(reply.status == 200 for reply in lives), lives
        slowest_live = max(reply.seconds for reply in lives)
        assert slowest_live <= LIVE_SECONDS_MAX, f"/livez took {slowest_live} s"


@contextmanager
def trial(
    folder: Path,
    *,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    command: Sequence[str] = RELAY,
    environment: Mapping[str, str] | None = None,
    upstream_down: bool = False,
    **load: object,
) -> Iterator[Trial]:
    """Run everything; at the end of a test that passed, a stop must be clean."""
    merged = {name: dict(keys) for name, keys in SETTINGS.items()}
    for section, keys in (settings or {}).items():
        merged.setdefault(section, {}).update(keys)
    with CountingUpstream() as upstream:
        if upstream_down:
            upstream.close()
        daemon = Daemon(folder, upstream.url, settings=merged, command=command, environment=environment)
        one = Trial(daemon, upstream, PacedLoad(daemon.url, **load), Watch(daemon))
        try:
            daemon.start().wait_ready()
            one.load.start()
            one.watch.start()
            yield one
            one.quiet()
            if daemon.alive():
                assert daemon.sigterm() == 0, daemon.log[-4000:]
        finally:
            one.quiet()
            if daemon.alive():
                daemon.kill9()
