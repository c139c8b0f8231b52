"""One function per thing that happens; each adds to plain numbers and returns within a microsecond."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, get_args

from relay.errors import Refusal
from relay.observe.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Outcome = Literal[
    "success", "retryable", "auth", "rejected", "timeout", "connect", "ambiguous", "bad_answer", "misconfigured"
]
"""How an attempt upstream ended."""

OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)
REFUSED_REASONS: Final = ("invalid", "too_large", "queue_full", "disk_error", "unauthorized")
SUSPECT_REASONS: Final = ("name_characters", "name_length", "metadata_size")

ANSWER_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
"""An answer takes about one fsync, 0.2 to 30 ms by disk, so powers of two there; 5 s is the bound on answers."""
COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2.5, 5, 10)
"""Mostly the fsync; the alert on slow commits asks for 0.25 s."""
ATTEMPT_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
"""A round trip over the internet, up to the time-out of one attempt (30 s unless set) and somewhat past it."""
DELAY_BUCKETS: Final = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400, 7 * 86400,
)  # fmt: skip
"""From the usual fraction of a second to an outage of days; 900 s is where the alert on old events stands."""
EVENTS_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Events in one commit or batch; 1,000 is upstream's safe batch."""
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""A healthy loop is late by under 5 ms; at 5 s answers come too late."""


def _refusals(of: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    for refusal in of.__subclasses__():
        yield refusal
        yield from _refusals(refusal)


ANSWER_CODES: Final = tuple(sorted({200, 202, 204, 500} | {refusal.status for refusal in _refusals()}))
"""Every status the listener can answer: accepted, a preflight, each refusal, and 500 for a bug of ours."""


class Observer:
    """What has happened since the process began. Call it from the event loop; `clock` gives Unix seconds.

    The attributes are there for `relay.observe.metrics`, which names them; everybody else calls the methods.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.answers: Counter[int] = Counter(dict.fromkeys(ANSWER_CODES, 0))
        self.answer_seconds = Histogram(ANSWER_BUCKETS)
        self.in_flight_requests = 0
        self.accepted_events = 0
        self.accepted_bytes = 0
        self.suppressed_events = 0
        self.ambiguous_requests = 0
        self.suspect_events: Counter[str] = Counter(dict.fromkeys(SUSPECT_REASONS, 0))
        self.refused_events: Counter[str] = Counter(dict.fromkeys(REFUSED_REASONS, 0))
        self.commit_seconds = Histogram(COMMIT_BUCKETS)
        self.commit_events = Histogram(EVENTS_BUCKETS)
        self.loop_lag_seconds = Histogram(LAG_BUCKETS)
        self.attempts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.attempted_events: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.attempted_bytes = 0
        self.attempt_seconds = Histogram(ATTEMPT_BUCKETS)
        self.batch_events = Histogram(EVENTS_BUCKETS)
        self.delivery_delay_seconds = Histogram(DELAY_BUCKETS)
        self.last_success_at: float | None = None

    # The listener

    def request_began(self) -> None:
        """Count a request in; `request_ended` must follow, whatever becomes of it."""
        self.in_flight_requests += 1

    def request_ended(self) -> None:
        """Count a request out, answered or hung up on."""
        self.in_flight_requests -= 1

    def request_answered(self, code: int, seconds: float) -> None:
        """Count an answer; `seconds` from the last body byte to the answer."""
        self.answers[code] += 1
        self.answer_seconds.observe(seconds)

    def events_accepted(self, events: int, bytes: int) -> None:  # noqa: A002  the word for it in every room
        """Count events answered 202, suppressed ones among them; `bytes` of their text as it came."""
        self.accepted_events += events
        self.accepted_bytes += bytes

    def events_suppressed(self, events: int) -> None:
        """Count exact re-sends that were answered 202 and not stored again."""
        self.suppressed_events += events

    def events_refused(self, reason: str, events: int) -> None:
        """Count events that were not kept; `reason` as the Refusal has it."""
        self.refused_events[reason] += events

    def request_ambiguous(self) -> None:
        """Count a request that was answered 503 while its commit was under way."""
        self.ambiguous_requests += 1

    def suspects_seen(self, reason: str, events: int) -> None:
        """Count events that Statsig is documented to drop in silence; they travel on untouched."""
        self.suspect_events[reason] += events

    # The spool and the loop

    def commit_ended(self, seconds: float, events: int) -> None:
        """Count a commit of the queue that made `events` new events durable (0 where it only deleted)."""
        self.commit_seconds.observe(seconds)
        self.commit_events.observe(events)

    def loop_lagged(self, seconds: float) -> None:
        """Note by how much the event loop woke late."""
        self.loop_lag_seconds.observe(seconds)

    # The forwarder

    def attempt_ended(self, outcome: Outcome, events: int, bytes: int, seconds: float) -> None:  # noqa: A002  as above
        """Count one POST upstream; `bytes` of its body on the wire."""
        self.attempts[outcome] += 1
        self.attempted_events[outcome] += events
        self.attempted_bytes += bytes
        self.attempt_seconds.observe(seconds)

    def batch_delivered(self, events: int, delays: Iterable[tuple[float, int]]) -> None:
        """Count a batch that upstream has taken; `delays` holds (seconds since accepted, events) for each chunk."""
        self.batch_events.observe(events)
        for seconds, weight in delays:
            self.delivery_delay_seconds.observe(max(0.0, seconds), weight)
        self.last_success_at = self._clock()
