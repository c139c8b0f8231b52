"""What is known of the host upstream: how much it bears, how fast, how big, what it refuses; pure.

Times are monotonic seconds, given from outside. Each part learns from the outcomes that the settler tells it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.forwarder.gate import Gate
from relay.forwarder.pacing import Cadence, Ceiling, Refusals, Size

if TYPE_CHECKING:
    from collections.abc import Callable


class Host:
    """Says when the next request may start, and how big it may be."""

    def __init__(
        self,
        *,
        in_flight_max: int,
        retry_seconds_min: float,
        retry_seconds_max: float,
        batch_events_max: int,
        batch_bytes_max: int,
        events_per_second_max: float,
        random: Callable[[], float],
    ) -> None:
        self.gate = Gate(
            in_flight_max=in_flight_max,
            retry_seconds_min=retry_seconds_min,
            retry_seconds_max=retry_seconds_max,
            random=random,
        )
        self.cadence = Cadence()
        self.ceiling = Ceiling(events_per_second_max)
        self.size = Size(events_max=batch_events_max, bytes_max=batch_bytes_max)
        self.refusals = Refusals()

    def next_at(self, now: float) -> float | None:
        """When the next request may start; None while that waits for one under way to end."""
        at = self.gate.next_at(now)
        return None if at is None else max(at, self.cadence.next_at(now), self.ceiling.next_at(now))

    def started(self, now: float, events: int) -> None:
        """Count a request in."""
        self.gate.started()
        self.cadence.started(now)
        self.ceiling.started(now, events)

    def nothing_waits(self, now: float) -> None:
        """What an outage left is sent, where the gate is open."""
        if self.cadence.catching_up and self.gate.is_open:
            self.cadence.caught_up(now)
