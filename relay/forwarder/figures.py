"""How the way upstream stands, for metrics and the status page."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from relay.observe import AttemptNumbers, ForwardNumbers, LaneState, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.forwarder.batching import Batch
    from relay.forwarder.courier import Trip
    from relay.forwarder.gate import Gate
    from relay.forwarder.lanes import Lane

ATTEMPTS_KEPT: Final = 20


class LaneStanding(msgspec.Struct, frozen=True):
    """What holds one lane back, or that nothing does."""

    state: LaneState = "active"
    next_try_in_seconds: float | None = None
    """None while nothing holds it back."""
    error: str = ""


class Numbers(msgspec.Struct, frozen=True):
    """The forwarder now."""

    forward: ForwardNumbers
    lanes: Mapping[int, LaneStanding]
    """Only those that are not simply active."""
    gate_reason: str = ""
    """Why the gate is closed; empty while it is open."""


class Figures:
    """Keeps the last attempts and the last success."""

    def __init__(self) -> None:
        self.last_success_at: float | None = None
        self._attempts: deque[AttemptNumbers] = deque(maxlen=ATTEMPTS_KEPT)

    def attempt_ended(self, wall: float, key: str, batch: Batch, trip: Trip) -> None:
        """Remember an attempt."""
        if trip.outcome.label == "success":
            self.last_success_at = wall
        self._attempts.appendleft(
            AttemptNumbers(
                ended_at=wall,
                outcome=trip.outcome.label,
                status=trip.outcome.status,
                events=batch.events,
                bytes=trip.bytes,
                seconds=trip.seconds,
                fingerprint=fingerprint(key),
                detail=trip.outcome.summary,
            )
        )

    def slowest_success_seconds(self) -> float:
        """Of the attempts remembered; 0 without one."""
        return max((attempt.seconds for attempt in self._attempts if attempt.outcome == "success"), default=0.0)

    def numbers(self, now: float, gate: Gate, in_flight_max: int, lanes: Mapping[int, Lane]) -> Numbers:
        """Everything at `now`, monotonic."""
        forward = ForwardNumbers(
            gate_limit=gate.limit,
            gate_limit_max=in_flight_max,
            in_flight_requests=gate.in_flight,
            backoff_seconds=gate.backoff_seconds,
            next_try_in_seconds=None if gate.is_open else max(0.0, gate.opens_at - now),
            last_success_at=self.last_success_at,
            attempts=tuple(self._attempts),
        )
        standings = {number: _standing(lane, now) for number, lane in lanes.items() if lane.state(now) != "active"}
        return Numbers(forward, standings, gate.reason)


def _standing(lane: Lane, now: float) -> LaneStanding:
    wait = None if lane.paused else max(0.0, lane.wait_until - now)
    return LaneStanding(lane.state(now), wait, lane.error)
