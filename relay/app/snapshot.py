"""How the relay stands, gathered from the rooms for metrics, status page and terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay import __version__
from relay.observe import LaneNumbers, QueueNumbers, Snapshot, fingerprint

if TYPE_CHECKING:
    from relay.forwarder.figures import LaneStanding
    from relay.forwarder.loop import Forwarder
    from relay.observe import Phase
    from relay.spool import LaneStats, Spool, Stats


def starting(*, now: float, started_at: float, upstream: str) -> Snapshot:
    """Before the spool is open there is little to say."""
    return Snapshot(
        now=now,
        started_at=started_at,
        version=__version__,
        upstream=upstream,
        phase="starting",
        queue=QueueNumbers(ready=False),
    )


def gather(
    spool: Spool,
    forwarder: Forwarder,
    *,
    now: float,
    started_at: float,
    upstream: str,
    phase: Phase,
    disk_free_bytes_min: int,
) -> Snapshot:
    """Ask every room for its numbers; `now` and `started_at` in Unix seconds."""
    way = forwarder.numbers()
    return Snapshot(
        now=now,
        started_at=started_at,
        version=__version__,
        upstream=upstream,
        phase=phase,
        queue=_queue(spool.stats(), disk_free_bytes_min),
        forward=way.forward,
        lanes=tuple(_lane(lane, way.lanes.get(lane.lane), now) for lane in spool.lanes()),
    )


def _queue(stats: Stats, disk_free_bytes_min: int) -> QueueNumbers:
    return QueueNumbers(
        ready=not stats.refusal,
        refusal=stats.refusal,
        recovering=stats.recovering,
        events=stats.events,
        bytes=stats.bytes,
        capacity_bytes=stats.capacity_bytes,
        in_flight_events=stats.in_flight_events,
        recovered_events=stats.recovered_events,
        enqueued_events=stats.enqueued_events,
        acked_events=stats.acked_events,
        dead_events=stats.dead_events,
        dead_recovered_events=stats.dead_recovered_events,
        dead_lettered_events=dict(stats.dead_lettered_events),
        dead_replayed_events=stats.dead_replayed_events,
        dropped_events=dict(stats.dropped_events),
        disk_free_bytes=stats.disk_free_bytes,
        disk_free_bytes_min=disk_free_bytes_min,
        disk_size_bytes=stats.disk_size_bytes,
        volatile=stats.volatile,
    )


def _lane(lane: LaneStats, standing: LaneStanding | None, now: float) -> LaneNumbers:
    oldest = lane.oldest_accepted_at_ms
    return LaneNumbers(
        fingerprint=fingerprint(lane.key),
        state="active" if standing is None else standing.state,
        events=lane.events,
        bytes=lane.bytes,
        in_flight_events=lane.in_flight_events,
        oldest_age_seconds=0.0 if oldest is None else max(0.0, now - oldest / 1000),
        next_try_in_seconds=None if standing is None else standing.next_try_in_seconds,
        error="" if standing is None else standing.error,
    )
