"""The lanes that have something to send or a reason to wait, and whose turn it is; pure.

    active ──425, 429, all refused──► backing off ──wait──► one batch at a time ──delivered──► active
       │──401, 403, no key──► parked ──each probe_seconds──► one probe ──delivered──► active
       └──an operator──► paused ──an operator──► active

Turns are fair by bytes: each lane carries the bytes it has sent, and the lane with the fewest goes first. A lane that
was idle starts level with the others, so that silence saves up no claim.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from relay.forwarder.batching import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.observe import LaneState
    from relay.spool import Ref

COALESCE_SECONDS: Final = 0.05
"""A batch that is not full starts at most this often per lane, so that single-event callers share POSTs: a POST costs
about 157 µs of CPU, an event in it 2 (measured 2026-11). The first events after a silence go at once."""


class Lane:
    """One key's way upstream. Times are monotonic seconds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting = Waiting()
        self.gathered: list[Ref] = []
        """Leased, not yet composed into batches."""
        self.gathered_events = 0
        self.gathered_bytes = 0
        self.may_have_more = False
        """The spool may hold chunks of this lane that can be leased."""
        self.in_flight = 0
        self.failures = 0
        """Answers in a row that told this lane to wait."""
        self.error = ""
        """Why it waits, in a few words."""
        self.fresh_first = False
        """What was never sent goes before what was refused: others than those may well be taken."""
        self.parked = False
        self.paused = False
        self.wait_until = 0.0
        """End of its back-off, or the time of its next probe."""
        self.last_started_at = float("-inf")
        self.sent_bytes = 0.0
        """Its turns so far, in bytes of text."""
        self.spared_until = 0.0
        """Nothing of it expires before: it could not have been sent while the lane waited for somebody."""
        self.ticket = 0

    def state(self, now: float) -> LaneState:
        """Say it in one word."""
        if self.paused:
            return "paused"
        if self.parked:
            return "parked"
        return "backing_off" if self.failures and self.wait_until > now else "active"

    def is_idle(self) -> bool:
        """Nothing to send, nothing under way, nothing to remember."""
        has_work = self.may_have_more or self.gathered or len(self.waiting)
        return not (has_work or self.in_flight or self.parked or self.paused)

    def next_at(self) -> float | None:
        """When it may start its next batch; None where something else has to happen first."""
        if self.paused or (self.in_flight and (self.parked or self.failures)):
            return None
        at = self.waiting.next_at()
        if self.may_have_more or self.gathered:
            fresh_at = 0.0 if self.may_have_more else self.last_started_at + COALESCE_SECONDS
            at = fresh_at if at is None else min(at, fresh_at)
        return None if at is None else max(at, self.wait_until)

    def gather(self, refs: list[Ref]) -> None:
        """Add freshly leased chunks to the next batch."""
        self.gathered += refs
        self.gathered_events += sum(ref.events for ref in refs)
        self.gathered_bytes += sum(ref.bytes for ref in refs)

    def take_gathered(self) -> list[Ref]:
        """Take what was gathered, to be composed."""
        refs, self.gathered = self.gathered, []
        self.gathered_events = self.gathered_bytes = 0
        return refs

    def back_off(self, until: float, error: str) -> None:
        """Wait, then go on with one batch at a time until one is delivered."""
        self.failures = max(self.failures, 1)
        self.wait_until = max(self.wait_until, until)
        self.error = error

    def park(self, probe_at: float, error: str) -> None:
        """Wait for the key to work again."""
        self.parked = True
        self.wait_until = probe_at
        self.error = error

    def healed(self) -> None:
        """Its key works, so nothing stands against this lane."""
        self.failures, self.parked, self.error, self.wait_until = 0, False, "", 0.0
        self.fresh_first = False

    def started(self, now: float, size: int) -> None:
        """Count a batch in."""
        self.in_flight += 1
        self.last_started_at = now
        self.sent_bytes += size


class Lanes:
    """Every lane that is not idle, and an agenda that costs a lane nothing while it waits."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._ready: list[tuple[float, int, Lane]] = []  # by bytes sent
        self._parked: list[tuple[float, int, Lane]] = []  # due for a probe, by time
        self._later: list[tuple[float, int, Lane]] = []  # by time
        self._tickets = 0
        self._level = 0.0

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __len__(self) -> int:
        return len(self._lanes)

    def get(self, number: int) -> Lane | None:
        """The lane, where it is not idle."""
        return self._lanes.get(number)

    def open(self, number: int) -> Lane:
        """The lane; made where there is none."""
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = Lane(number)
        return lane

    def put(self, lane: Lane) -> None:
        """Enter the lane into the agenda as it stands now; its earlier entry is void. Idle lanes are forgotten."""
        self._tickets += 1
        lane.ticket = self._tickets
        if lane.is_idle():
            self._lanes.pop(lane.number, None)
        elif (at := lane.next_at()) is not None:
            heapq.heappush(self._later, (at, lane.ticket, lane))

    def take(self, now: float, *, probes: bool, spare: bool) -> Lane | None:
        """Take the lane whose turn it is; `put` it back afterwards.

        Parked ones only where `probes` allows, and before others only where there is a `spare` place in flight.
        """
        self._settle(now)
        lane = _first(self._ready)
        probe = _first(self._parked) if probes else None
        if probe is not None and (spare or lane is None):
            heapq.heappop(self._parked)
            return probe
        if lane is not None:
            heapq.heappop(self._ready)
            self._level = max(self._level, lane.sent_bytes)
        return lane

    def next_at(self, now: float, *, probes: bool) -> float | None:
        """When the next lane has its turn; None while there is nothing to wait for."""
        self._settle(now)
        if _first(self._ready) or (probes and _first(self._parked)):
            return now
        first = _first(self._later)
        return None if first is None else self._later[0][0]

    def _settle(self, now: float) -> None:
        """Move the entries that have come due to where their turn is decided."""
        while (lane := _first(self._later)) is not None and self._later[0][0] <= now:
            at, ticket, _ = heapq.heappop(self._later)
            if lane.parked:
                heapq.heappush(self._parked, (at, ticket, lane))
            else:
                lane.sent_bytes = max(lane.sent_bytes, self._level)
                heapq.heappush(self._ready, (lane.sent_bytes, ticket, lane))


def _first(heap: list[tuple[float, int, Lane]]) -> Lane | None:
    """The first entry that still holds; void ones are dropped on the way."""
    while heap and heap[0][1] != heap[0][2].ticket:
        heapq.heappop(heap)
    return heap[0][2] if heap else None
