"""Every metric of the relay in one list: its name, its type, its help, and where its value comes from.

Names and labels stay put: dashboards and alerts hang on them. Every label value is exposed from the start, as 0, so
that `increase()` sees the first event of its kind.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from relay.observe.histogram import Histogram
from relay.observe.numbers import LaneState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from relay.observe.history import Trend
    from relay.observe.numbers import Snapshot
    from relay.observe.observer import Observer

PREFIX: Final = "event_relay_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

DEAD_REASONS: Final = ("invalid", "rejected", "too_large", "poison", "expired", "corrupt")
DROP_REASONS: Final = ("purged", "evicted", "corrupt")
"""By an operator; by the bound on dead letters."""


class Now(NamedTuple):
    """What values are read from."""

    seen: Observer
    stands: Snapshot
    trend: Trend


class Family(NamedTuple):
    """One metric: `read` gives its value, its histogram, or with labels a value for each tuple of label values."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[Now], float | Histogram | Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()


def _by(values: Mapping[str, float] | Mapping[int, float], always: Iterable[str] = ()) -> dict[tuple[str, ...], float]:
    """Give each value under its one label; those of `always` are there even before they happen."""
    rows: dict[tuple[str, ...], float] = {(name,): 0 for name in always}
    rows.update({(str(name),): value for name, value in values.items()})
    return rows


def _lanes(now: Now) -> dict[tuple[str, ...], float]:
    return _by({state: now.stands.lanes_in(state) for state in get_args(LaneState)})


def _oldest(now: Now) -> dict[tuple[str, ...], float]:
    return _by({"active": now.stands.oldest_age_seconds(), "parked": now.stands.oldest_parked_age_seconds()})


def _until_full(now: Now) -> float:
    seconds = now.trend.seconds_until_full
    return float("inf") if seconds is None else seconds


# fmt: off
FAMILIES: Final[tuple[Family, ...]] = (
    Family("build_info", "gauge", "Always 1; the labels say what runs.",
           lambda now: {(now.stands.version, platform.python_version()): 1}, ("version", "python")),

    # The listener
    Family("ingest_requests_total", "counter", "Requests answered, by HTTP status.",
           lambda now: _by(now.seen.answers), ("code",)),
    Family("ingest_events_total", "counter", "Events answered 202: put into the queue, or recognised as re-sent.",
           lambda now: now.seen.accepted_events),
    Family("ingest_bytes_total", "counter", "Bytes of the text of the events answered 202, as it came.",
           lambda now: now.seen.accepted_bytes),
    Family("ingest_events_suppressed_total", "counter", "Events recognised as exact re-sends: 202, not stored again.",
           lambda now: now.seen.suppressed_events),
    Family("ingest_ambiguous_requests_total", "counter", "Requests answered 503 while their commit was under way.",
           lambda now: now.seen.ambiguous_requests),
    Family("suspect_events_total", "counter", "Events Statsig is documented to drop in silence; forwarded untouched.",
           lambda now: _by(now.seen.suspect_events), ("reason",)),
    Family("ingest_events_rejected_total", "counter", "Events of refused requests, not kept, by reason.",
           lambda now: _by(now.seen.refused_events), ("reason",)),
    Family("ingest_duration_seconds", "histogram", "From a request's last body byte to its answer.",
           lambda now: now.seen.answer_seconds),
    Family("ingest_in_flight_requests", "gauge", "Requests that have come and are not answered yet.",
           lambda now: now.seen.in_flight_requests),

    # The queue
    Family("queue_events", "gauge", "Events on disk that are not delivered yet, those in flight among them.",
           lambda now: now.stands.queue.events),
    Family("queue_bytes", "gauge", "Bytes on disk that count against the capacity.",
           lambda now: now.stands.queue.bytes),
    Family("queue_capacity_bytes", "gauge", "Bytes past which events are refused with 503.",
           lambda now: now.stands.queue.capacity_bytes),
    Family("queue_in_flight_events", "gauge", "Events in requests to upstream now.",
           lambda now: now.stands.queue.in_flight_events),
    Family("queue_seconds_until_full", "gauge", "Time until full at the growth of two minutes; +Inf if not growing.",
           _until_full),
    Family("queue_oldest_event_age_seconds", "gauge", "Age of the oldest event: moving, or of a parked or paused lane.",
           _oldest, ("state",)),
    Family("queue_lanes", "gauge", "Lanes (one a key) that hold events, by state.",
           _lanes, ("state",)),
    Family("queue_enqueued_events_total", "counter", "Events put into the queue.",
           lambda now: now.stands.queue.enqueued_events),
    Family("queue_recovered_events_total", "counter", "Events found in the queue at the start.",
           lambda now: now.stands.queue.recovered_events),
    Family("queue_acked_events_total", "counter", "Events that upstream has taken and the queue has forgotten.",
           lambda now: now.stands.queue.acked_events),
    Family("queue_commit_duration_seconds", "histogram", "Time of one commit of the queue, its fsync included.",
           lambda now: now.seen.commit_seconds),
    Family("queue_commit_events", "histogram", "Events made durable by one commit.",
           lambda now: now.seen.commit_events),
    Family("queue_disk_free_bytes", "gauge", "Free bytes of the queue's file system.",
           lambda now: now.stands.queue.disk_free_bytes),
    Family("queue_disk_size_bytes", "gauge", "Size of the queue's file system.",
           lambda now: now.stands.queue.disk_size_bytes),
    Family("queue_volatile", "gauge", "1 where the queue lies in memory (tmpfs) and a reboot loses it.",
           lambda now: now.stands.queue.volatile),

    # Dead letters
    Family("dead_letter_events", "gauge", "Dead letters held: events that upstream will never take.",
           lambda now: now.stands.queue.dead_events),
    Family("dead_letter_recovered_events_total", "counter", "Dead letters found at the start.",
           lambda now: now.stands.queue.dead_recovered_events),
    Family("dead_letter_replayed_events_total", "counter", "Dead letters that an operator put back into the queue.",
           lambda now: now.stands.queue.dead_replayed_events),
    Family("dead_lettered_events_total", "counter", "Events set aside as dead letters, by reason.",
           lambda now: _by(now.stands.queue.dead_lettered_events, DEAD_REASONS), ("reason",)),
    Family("dropped_events_total", "counter", "Dead letters deleted for good, by an operator or by their bound.",
           lambda now: _by(now.stands.queue.dropped_events, DROP_REASONS), ("reason",)),

    # The forwarder
    Family("forward_requests_total", "counter", "Requests to upstream that have ended, by outcome.",
           lambda now: _by(now.seen.attempts), ("outcome",)),
    Family("forward_events_total", "counter", "Events in those requests, by outcome; a repeat counts again.",
           lambda now: _by(now.seen.attempted_events), ("outcome",)),
    Family("forward_bytes_total", "counter", "Bytes of those requests' bodies, as sent.",
           lambda now: now.seen.attempted_bytes),
    Family("forward_duration_seconds", "histogram", "Time of one request to upstream.",
           lambda now: now.seen.attempt_seconds),
    Family("forward_batch_events", "histogram", "Events in one delivered batch.",
           lambda now: now.seen.batch_events),
    Family("delivery_delay_seconds", "histogram", "From accepting an event to upstream's yes, event by event.",
           lambda now: now.seen.delivery_delay_seconds),
    Family("forward_last_success_timestamp_seconds", "gauge", "When upstream last took a batch; 0 before the first.",
           lambda now: now.seen.last_success_at or 0.0),
    Family("forward_backoff_seconds", "gauge", "The host's wait between attempts now; 0 while it answers.",
           lambda now: now.stands.forward.backoff_seconds),
    Family("forward_gate_limit", "gauge", "Requests the host's gate lets through now; 0: closed.",
           lambda now: now.stands.forward.gate_limit),

    # The process
    Family("event_loop_lag_seconds", "histogram", "By how much the event loop woke late.",
           lambda now: now.seen.loop_lag_seconds),
    Family("conservation_drift_events", "gauge", "Events by which the books are off: 0, or a bug.",
           lambda now: now.stands.queue.drift_events()),
)
# fmt: on


def process_registry() -> CollectorRegistry:
    """Give what the client library knows of the process: `process_*` and `python_*`. It reads /proc when collected."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Reading(Collector):
    """All metrics at one moment. Make it on the event loop; write it in any thread."""

    def __init__(self, observer: Observer, snapshot: Snapshot, trend: Trend, process: CollectorRegistry) -> None:
        now = Now(observer, snapshot, trend)
        self._metrics = [_metric(family, now) for family in FAMILIES]
        self._process = process

    def collect(self) -> Iterable[Metric]:
        """Give the relay's own metrics as they were, then the process's as they are."""
        yield from self._metrics
        yield from self._process.collect()

    def text(self) -> bytes:
        """Write the text exposition, CONTENT_TYPE. Blocks for milliseconds and reads /proc: not for the event loop."""
        return generate_latest(self)


def _metric(family: Family, now: Now) -> Metric:
    name = PREFIX + family.name
    metric = Metric(name.removesuffix("_total"), family.help, family.type)
    value = family.read(now)
    if isinstance(value, Histogram):
        for bound, count in value.cumulative():
            metric.add_sample(f"{name}_bucket", {"le": "+Inf" if bound == float("inf") else str(float(bound))}, count)
        metric.add_sample(f"{name}_sum", {}, value.sum)
        metric.add_sample(f"{name}_count", {}, value.cumulative()[-1][1])
    elif isinstance(value, (int, float)):
        metric.add_sample(name, {}, value)
    else:
        for labels, number in value.items():
            metric.add_sample(name, dict(zip(family.labels, labels, strict=True)), number)
    return metric
