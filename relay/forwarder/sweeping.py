"""Sets aside what is too old, lane by lane; never of a lane that waits for somebody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from relay.forwarder.batching import Batch, Bounds
from relay.forwarder.expiry import Expiry, split_old
from relay.observe import fingerprint
from relay.spool import Verdict as Epitaph

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.forwarder.clocks import Clocks
    from relay.forwarder.journal import Journal
    from relay.forwarder.lanes import Lane, Lanes
    from relay.forwarder.leases import Leases
    from relay.forwarder.settling import Settler

LOOK_SECONDS_MIN: Final = 60.0
"""Ages are counted in days: nobody misses a minute."""
LOOK_SECONDS_MAX: Final = 600.0
"""The clocks are compared this often at least, so that a step is seen before anything is judged by it."""
SWEEP: Final = Bounds(events_max=10_000, bytes_max=8 << 20)
"""Set aside in one commit at most."""


class Sweeper:
    """Owns the judgement of age; `run` it beside the forwarder's loop."""

    def __init__(
        self,
        leases: Leases,
        lanes: Lanes,
        settler: Settler,
        journal: Journal,
        clocks: Clocks,
        *,
        age_seconds_max: float,
        wake: Callable[[int], None],
        hold: Callable[[int], None],
    ) -> None:
        """`hold` is called for each lane that the spool holds and the forwarder does not: it has lost its key."""
        self._leases = leases
        self._lanes = lanes
        self._settler = settler
        self._journal = journal
        self._wake, self._hold = wake, hold
        self._age_seconds_max = age_seconds_max
        self._expiry = Expiry(age_seconds_max=age_seconds_max)
        self._monotonic = clocks.monotonic
        self._wall = clocks.wall

    def cut_off_ms(self, lane: Lane | None = None) -> int | None:
        """Chunks accepted before this are too old to send; None while ages cannot be believed, or do not matter."""
        monotonic, wall = self._monotonic(), self._wall()
        if lane is not None and (lane.parked or lane.paused):
            # What it holds grew old through no fault of ours; it gets as long again to be delivered.
            lane.spared_until = monotonic + self._age_seconds_max
        if lane is not None and monotonic < lane.spared_until:
            return None
        if self._expiry.look(monotonic=monotonic, wall=wall):
            self._journal.clock_stepped()
        return self._expiry.cut_off_ms(monotonic=monotonic, wall=wall)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            ages: list[int] = []
            self.cut_off_ms()  # compares the clocks, were there no lane to ask for
            for stats in self._leases.lanes():
                oldest_ms = stats.oldest_accepted_at_ms
                lane = self._lanes.get(stats.lane)
                if stats.paused and not (lane and lane.paused):
                    self._hold(stats.lane)
                    lane = self._lanes.get(stats.lane)
                cut_off_ms = self.cut_off_ms(lane)
                if cut_off_ms is None or oldest_ms is None:
                    continue
                ages.append(oldest_ms)
                if oldest_ms < cut_off_ms:
                    await self._sweep(stats.lane)
            await asyncio.sleep(self._seconds_to_next(ages))

    async def _sweep(self, number: int) -> None:
        """Set aside the lane's free chunks that are too old; those held are looked at when their batch has its turn."""
        lane, name = self._lanes.open(number), fingerprint(self._leases.key_of(number))
        fresh = False
        while not fresh:
            old, others = split_old(self._leases.lease(number, SWEEP), self.cut_off_ms(lane))
            self._leases.release(others)
            fresh = bool(others) or not old
            if old:
                expired = Batch(refs=tuple(old))
                await self._settler.bury(lane, name, expired, expired_epitaph(expired))
        self._wake(number)
        self._lanes.put(lane)

    def _seconds_to_next(self, accepted_at_ms: list[int]) -> float:
        now = self._monotonic()
        at = self._expiry.next_at(accepted_at_ms, monotonic=now, wall=self._wall())
        wait = LOOK_SECONDS_MAX if at is None else at - now
        return min(max(wait, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)


def expired_epitaph(batch: Batch) -> Epitaph:
    """Say why a batch that got too old is a dead letter."""
    return Epitaph(
        "expired",
        "older than queue.age_max",
        attempts=batch.attempts,
        first_attempt_at_ms=batch.first_attempt_at_ms,
    )
