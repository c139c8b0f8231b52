"""How the relay stands at one moment, as plain numbers: what app collects and every reader is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

Phase = Literal["starting", "running", "draining"]
"""The spool is not open yet; the usual; the process has been told to stop and delivers what it can."""

LaneState = Literal["active", "backing_off", "parked", "paused"]
"""Delivering; waiting for its own back-off; waiting for its key to work again; held by an operator."""

_WAITING_ON_SOMEBODY: tuple[LaneState, ...] = ("parked", "paused")


class QueueNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """The queue now, and its counters since the process began."""

    ready: bool = True
    """Events can be made durable now."""
    refusal: str = ""
    """Why not, in a sentence; empty where ready."""
    recovering: bool = False
    """The index of an earlier run is still loading; the numbers grow until it ends."""
    events: int = 0
    """Those in flight among them."""
    bytes: int = 0
    capacity_bytes: int = 0
    in_flight_events: int = 0
    recovered_events: int = 0
    enqueued_events: int = 0
    acked_events: int = 0
    dead_events: int = 0
    dead_recovered_events: int = 0
    dead_lettered_events: dict[str, int] = {}
    """By reason."""
    dead_replayed_events: int = 0
    dropped_events: dict[str, int] = {}
    """By reason."""
    disk_free_bytes: int = 0
    disk_free_bytes_min: int = 0
    """The floor under which the queue refuses."""
    disk_size_bytes: int = 0
    volatile: bool = False
    """The folder lies in memory; a reboot loses it."""

    def drift_events(self) -> int:
        """By how many events the books are off, both equations added; 0, or a bug.

        recovered + enqueued = acked + dead-lettered + queued, and
        dead recovered + dead-lettered = replayed + dropped + dead held.
        """
        dead_lettered = sum(self.dead_lettered_events.values())
        queued = self.recovered_events + self.enqueued_events - self.acked_events - dead_lettered
        dropped = sum(self.dropped_events.values())
        dead = self.dead_recovered_events + dead_lettered - self.dead_replayed_events - dropped
        return abs(queued - self.events) + abs(dead - self.dead_events)

    def fill(self) -> float:
        """The share of the capacity in use; 0 while the capacity is not known."""
        return self.bytes / self.capacity_bytes if self.capacity_bytes else 0.0


class LaneNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One lane that holds events."""

    fingerprint: str
    state: LaneState
    events: int
    bytes: int
    in_flight_events: int
    oldest_age_seconds: float
    next_try_in_seconds: float | None = None
    """None while nothing holds the lane back."""
    error: str = ""
    """Why it is not active, in a few words; empty where nothing went wrong."""


class AttemptNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One POST to upstream that has ended."""

    ended_at: float
    """Unix seconds."""
    outcome: str
    status: int
    """0 where upstream gave none."""
    events: int
    bytes: int
    """On the wire."""
    seconds: float
    fingerprint: str
    detail: str = ""


class ForwardNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """The way upstream now."""

    gate_limit: int = 0
    """Requests the host's gate lets through now; 0: closed."""
    gate_limit_max: int = 0
    in_flight_requests: int = 0
    backoff_seconds: float = 0.0
    """The host's wait between attempts now; 0 while it answers."""
    next_try_in_seconds: float | None = None
    """Until the closed gate's next probe; None while it is open."""
    last_success_at: float | None = None
    """Unix seconds; None before the first delivery."""
    attempts: tuple[AttemptNumbers, ...] = ()
    """The last few, newest first."""

    def closed(self) -> bool:
        """Tell whether the host's gate lets nothing through; before it is known, it is not closed."""
        return self.gate_limit == 0 and self.gate_limit_max > 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator may ask for, at `now`."""

    now: float
    """Unix seconds."""
    started_at: float
    """Unix seconds."""
    version: str
    upstream: str
    """The host events go to."""
    phase: Phase = "running"
    queue: QueueNumbers = QueueNumbers()
    forward: ForwardNumbers = ForwardNumbers()
    lanes: tuple[LaneNumbers, ...] = ()

    def lanes_in(self, state: LaneState) -> int:
        """How many lanes that hold events are in this state."""
        return sum(lane.state == state for lane in self.lanes)

    def oldest_age_seconds(self) -> float:
        """Age of the oldest event that should be moving (its lane active or backing off); 0 without one."""
        return self._oldest([lane for lane in self.lanes if lane.state not in _WAITING_ON_SOMEBODY])

    def oldest_parked_age_seconds(self) -> float:
        """Age of the oldest event that waits for somebody (its lane parked or paused); 0 without one."""
        return self._oldest([lane for lane in self.lanes if lane.state in _WAITING_ON_SOMEBODY])

    @staticmethod
    def _oldest(lanes: Collection[LaneNumbers]) -> float:
        return max((lane.oldest_age_seconds for lane in lanes), default=0.0)
