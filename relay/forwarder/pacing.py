"""How fast, how big: the ceiling, the cadence after an outage, the size upstream takes, the brake on refusals; pure.

All times are monotonic seconds, given from outside.
"""

from __future__ import annotations

import math
from typing import Final

from relay.forwarder.batching import Bounds

CATCH_UP_FACTOR: Final = 1.1
"""After an outage requests start at their usual rate times this, in batches as big as they may be: a fleet of 10,000
relays then peaks at 1.1 times its steady rate; draining flat out it peaked at 2.6 (simulated 2026-11). Each
CADENCE_SECONDS that the host works and there is more to catch up multiplies by it once more. For batches that were full
already cannot grow, and by day more comes in than went out by night: without it such a queue would never be empty."""
CATCH_UP_STEPS_MAX: Final = 64
"""Times that the pace is raised, at most: some 400-fold, where the gate alone is the bound."""
CADENCE_SECONDS: Final = 300.0
"""Over which the usual rate is averaged: long against one flush of an SDK (1 to 10 s), short against a day's tides."""
CADENCE_REQUESTS_MIN: Final = 20
"""Below this many there is no usual rate to speak of, and catching up is bounded by the gate alone."""
SIZE_RECOVERY_SECONDS: Final = 600.0
"""After a 413 the learned size may grow by a tenth each time this passes without another."""
SIZE_BYTES_MIN: Final = 16 * 1024
"""The learned size stops here: what is refused below is refused for its own sake."""
REFUSED_EVENTS_MAX: Final = 10
"""So many single events refused in a row, and none taken in between, are hardly the events' fault any more."""
REFUSED_LANES_MAX: Final = 1024
"""Lanes whose refusals are remembered; past that the one longest without another is forgotten."""


class Cadence:
    """The usual rate of requests, learned while all is well and kept to while catching up."""

    def __init__(self) -> None:
        self.catching_up = False
        self._weight = 0.0  # requests, each fading with CADENCE_SECONDS
        self._seconds = 0.0  # observed, fading likewise, so that their ratio is right from the first minute
        self._seen = 0
        self._at: float | None = None
        self._next_at = 0.0
        self._worked_seconds = 0.0  # since catching up began, up to the last turn; what it failed is taken off
        self._turned_at = 0.0
        self._works = True

    def started(self, now: float) -> None:
        """Count a request."""
        if self.catching_up:
            self._next_at = max(now, self._next_at) + self._interval(now)
            return
        self._advance(now)
        self._weight += 1
        self._seen += 1

    def next_at(self, now: float) -> float:
        """When the next request may start."""
        return max(now, self._next_at) if self.catching_up else now

    def broke(self, now: float) -> None:
        """An outage began: what happens until it is over is not usual."""
        if not self.catching_up:
            self._advance(now)
            self.catching_up = True
            self._next_at = now
            self._worked_seconds, self._turned_at = 0.0, now
        self._worked_seconds = self._worked_until(now)
        self._works, self._turned_at = False, now

    def mended(self, now: float) -> None:
        """The outage is over; what it left waits."""
        self._worked_seconds = self._worked_until(now)
        self._works, self._turned_at = True, now

    def caught_up(self, now: float) -> None:
        """Nothing is waiting any more."""
        self.catching_up = False
        self._at = now

    def _advance(self, now: float) -> None:
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        fade = math.exp(-passed / CADENCE_SECONDS)
        self._weight *= fade
        self._seconds = self._seconds * fade + CADENCE_SECONDS * (1 - fade)
        self._at = now

    def _interval(self, now: float) -> float:
        if self._seen < CADENCE_REQUESTS_MIN or not self._weight:
            return 0.0
        steps = min(int(self._worked_until(now) / CADENCE_SECONDS), CATCH_UP_STEPS_MAX)
        return self._seconds / self._weight / CATCH_UP_FACTOR ** (1 + steps)

    def _worked_until(self, now: float) -> float:
        passed = now - self._turned_at
        return max(0.0, self._worked_seconds + (passed if self._works else -passed))


class Ceiling:
    """The operator's `events_per_second_max`; 0 is none. A batch may overdraw it, the next one waits for that."""

    def __init__(self, events_per_second_max: float) -> None:
        self._rate = events_per_second_max
        self._next_at = 0.0

    def next_at(self, now: float) -> float:
        """When the next batch may start."""
        return max(now, self._next_at)

    def started(self, now: float, events: int) -> None:
        """Count a batch."""
        if self._rate:
            self._next_at = max(now, self._next_at) + events / self._rate

    def refund(self, events: int) -> None:
        """Take back events that were counted and did not go."""
        if self._rate:
            self._next_at -= events / self._rate


class Size:
    """The bounds of a batch: the operator's, or what upstream's 413 taught."""

    def __init__(self, *, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._learned = bytes_max
        self._changed_at = 0.0

    def bounds(self, now: float) -> Bounds:
        """What a batch that is composed now may hold."""
        if self._learned < self._bytes_max and now - self._changed_at >= SIZE_RECOVERY_SECONDS:
            self._learned = min(self._bytes_max, self._learned + self._learned // 10)
            self._changed_at = now
        return Bounds(self._events_max, self._learned)

    def refused(self, now: float, size: int) -> bool:
        """Upstream found `size` bytes too many; True where that is news. What is small already teaches nothing."""
        if size <= SIZE_BYTES_MIN:
            return False
        before, self._learned = self._learned, min(self._learned, max(SIZE_BYTES_MIN, size // 2))
        self._changed_at = now
        return self._learned < before


class Refusals:
    """Tells an event that upstream minds from an upstream that minds whatever it is sent, by one key or by all.

    A batch with one bad event has others to be taken; a gateway that is set up wrong answers 400 to everything.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._of_lane: dict[int, int] = {}

    def of_everything(self, lane: int) -> bool:
        """Tell whether too many single events were refused, of this lane or at all, with none taken in between."""
        return max(self._in_a_row, self._of_lane.get(lane, 0)) >= REFUSED_EVENTS_MAX

    def refused(self, lane: int) -> None:
        """A single event of the lane was refused."""
        self._in_a_row += 1
        self._of_lane[lane] = self._of_lane.pop(lane, 0) + 1
        if len(self._of_lane) > REFUSED_LANES_MAX:
            del self._of_lane[next(iter(self._of_lane))]

    def taken(self, lane: int) -> None:
        """A batch of the lane was delivered."""
        self._in_a_row = 0
        self._of_lane.pop(lane, None)
