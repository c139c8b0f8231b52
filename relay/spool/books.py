"""The spool's books: what came in, what left and what is held, in events, since the process began; pure.

recovered + enqueued = acked + dead-lettered + queued
dead recovered + dead-lettered = replayed + dropped + dead held
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.spool.index import Lane
    from relay.spool.letters import DeadLetter


class Books:
    """Every counter of the spool, and what lies as dead letters now."""

    def __init__(self) -> None:
        self.recovered = 0
        self.enqueued = 0
        self.acked = 0
        self.dead_events = 0
        self.dead_bytes = 0
        self.dead_recovered = 0
        self.dead_replayed = 0
        self.dead_lettered: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def recover_dead(self, lane: Lane, *, chunks: int, events: int, size: int) -> None:
        """Take over a lane's dead letters from an earlier life."""
        lane.dead_chunks += chunks
        self.dead_events += events
        self.dead_recovered += events
        self.dead_bytes += size

    def died(self, lane: Lane, reason: str, *, events: int, size: int) -> None:
        """Count a chunk that has become a dead letter."""
        lane.dead_chunks += 1
        self.dead_events += events
        self.dead_bytes += size
        self.dead_lettered[reason] += events

    def lost(self, reason: str, events: int) -> None:
        """Count a chunk of which nothing is left: a dead letter, and dropped in the same breath."""
        self.dead_lettered[reason] += events
        self.dropped[reason] += events

    def replayed(self, lane: Lane, letter: DeadLetter) -> None:
        """Count a dead letter that is queued anew."""
        self._leave(lane, letter)
        self.dead_replayed += letter.events
        self.enqueued += letter.events

    def dropped_dead(self, lane: Lane, letter: DeadLetter, reason: str) -> None:
        """Count a dead letter that is gone for good."""
        self._leave(lane, letter)
        self.dropped[reason] += letter.events

    def _leave(self, lane: Lane, letter: DeadLetter) -> None:
        lane.dead_chunks -= 1
        self.dead_events -= letter.events
        self.dead_bytes -= letter.bytes
