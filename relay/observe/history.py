"""The last fifteen minutes of the queue in a bounded ring: the depth curve, the rates and the time until full."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.observe.numbers import Snapshot

HISTORY_SECONDS: Final = 900
SAMPLE_SECONDS: Final = 5
"""One point of the curve; 180 of them are finer than the page can draw and cost 20 KB."""
RATE_WINDOW_SECONDS: Final = 15
"""Short enough to feel live, long enough that a batch does not look like a burst."""
GROWTH_WINDOW_SECONDS: Final = 120
"""Long enough that the queue's breathing between two batches does not count as filling up."""


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """Where the queue is heading."""

    accepted_per_second: float = 0.0
    """Events put into the queue, over the last 15 s."""
    delivered_per_second: float = 0.0
    """Events that upstream has taken, over the last 15 s."""
    growth_bytes_per_second: float = 0.0
    """Of the queue on disk, over the last two minutes; negative while it drains."""
    seconds_until_full: float | None = None
    """At that growth; None while the queue does not grow."""


class _Sample(NamedTuple):
    at: float
    events: int
    bytes: int
    enqueued: int
    acked: int


def seconds_until_full(*, bytes_now: int, capacity_bytes: int, growth_bytes_per_second: float) -> float | None:
    """How long the room lasts at this growth: 0 where none is left, None where it does not shrink."""
    room = capacity_bytes - bytes_now
    if room <= 0 < capacity_bytes:
        return 0.0
    if growth_bytes_per_second <= 0 or capacity_bytes <= 0:
        return None
    return room / growth_bytes_per_second


class History:
    """Samples of the queue, oldest first; `clock` is monotonic, so that a step of the wall clock bends no curve."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ring: deque[_Sample] = deque(maxlen=HISTORY_SECONDS // SAMPLE_SECONDS + 1)

    def sample(self, snapshot: Snapshot) -> None:
        """Keep a point; to be called every SAMPLE_SECONDS."""
        self._ring.append(self._take(snapshot))

    def depths(self, snapshot: Snapshot) -> tuple[tuple[float, int], ...]:
        """Give the curve as (seconds ago, events), oldest first, ending with this snapshot."""
        now = self._clock()
        kept = [(now - sample.at, sample.events) for sample in self._ring if 0 < now - sample.at <= HISTORY_SECONDS]
        return (*kept, (0.0, snapshot.queue.events))

    def trend(self, snapshot: Snapshot) -> Trend:
        """Tell rates and growth from the samples up to this snapshot; all zero before there is one to compare with."""
        latest, queue = self._take(snapshot), snapshot.queue
        lately = self._first_since(latest.at - RATE_WINDOW_SECONDS)
        growth = _slope(self._first_since(latest.at - GROWTH_WINDOW_SECONDS), latest, "bytes")
        return Trend(
            accepted_per_second=_slope(lately, latest, "enqueued"),
            delivered_per_second=_slope(lately, latest, "acked"),
            growth_bytes_per_second=growth,
            seconds_until_full=seconds_until_full(
                bytes_now=queue.bytes, capacity_bytes=queue.capacity_bytes, growth_bytes_per_second=growth
            ),
        )

    def _take(self, snapshot: Snapshot) -> _Sample:
        queue = snapshot.queue
        return _Sample(self._clock(), queue.events, queue.bytes, queue.enqueued_events, queue.acked_events)

    def _first_since(self, at: float) -> _Sample | None:
        return next((sample for sample in self._ring if sample.at >= at), None)


def _slope(first: _Sample | None, last: _Sample, field: str) -> float:
    if first is None or last.at <= first.at:
        return 0.0
    rise: int = getattr(last, field) - getattr(first, field)
    return rise / (last.at - first.at)
