"""The lanes in memory: which chunks wait, in what order, and who holds which; pure.

A free chunk costs 28 bytes: four machine arrays instead of objects, so that a million of them fit beside a busy app.
"""

from __future__ import annotations

import heapq
from array import array
from typing import TYPE_CHECKING, Final

from relay.spool import LaneStats, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from relay.spool.store import Entry, LaneRow

_COMPACT_AT: Final = 4096
"""Entries taken before the arrays are moved up; the move is then paid by as many leases."""


class Lane:
    """All chunks of one key: free ones in order of id, leased ones by id."""

    __slots__ = (
        "_accepted",
        "_events",
        "_head",
        "_ids",
        "_returned",
        "_sizes",
        "bytes",
        "dead_chunks",
        "events",
        "in_flight_events",
        "key",
        "leased",
        "number",
        "paused",
        "pending_events",
    )

    def __init__(self, number: int, key: str, *, paused: bool = False) -> None:
        self.number = number
        self.key = key
        self.paused = paused
        """Held by an operator; remembered here, kept by the forwarder."""
        self.dead_chunks = 0
        """Dead letters, which need the lane's key should they be replayed."""
        self.events = 0
        """Queued: free, leased, and those on disk whose entries are not loaded yet."""
        self.bytes = 0
        self.in_flight_events = 0
        self.pending_events = 0
        """On their way to the disk."""
        self.leased: dict[int, Ref] = {}
        self._ids = array("q")
        self._events = array("I")
        self._sizes = array("I")
        self._accepted = array("q")
        self._head = 0
        self._returned: list[tuple[int, Ref]] = []

    def __len__(self) -> int:
        """Free chunks whose entries are loaded."""
        return len(self._ids) - self._head + len(self._returned)

    def push(self, entry: Entry) -> None:
        """Add a chunk behind all others; its totals were counted when it was stored."""
        self._ids.append(entry.id)
        self._events.append(entry.events)
        self._sizes.append(entry.bytes)
        self._accepted.append(entry.accepted_at_ms)

    def lease(self, events_max: int, bytes_max: int) -> list[Ref]:
        """Take the oldest free chunks within both bounds, at least one if there is any."""
        taken: list[Ref] = []
        for ref in self._oldest_first():
            if taken and (ref.events > events_max or ref.bytes > bytes_max):
                break
            self._drop_first()
            taken.append(ref)
            events_max -= ref.events
            bytes_max -= ref.bytes
            self.leased[ref.id] = ref
            self.in_flight_events += ref.events
        return taken

    def release(self, ref: Ref) -> None:
        """Give a leased chunk back; it keeps its place."""
        self._unlease(ref)
        heapq.heappush(self._returned, (ref.id, ref))

    def settle(self, ref: Ref) -> None:
        """Forget a leased chunk: it left the queue."""
        self._unlease(ref)
        self.events -= ref.events
        self.bytes -= ref.bytes

    def adopt(self, ref: Ref) -> None:
        """Count a chunk that is born leased, as the parts of a replaced one are."""
        self.events += ref.events
        self.bytes += ref.bytes
        self.leased[ref.id] = ref
        self.in_flight_events += ref.events

    def oldest_accepted_at_ms(self) -> int | None:
        """Acceptance of the oldest chunk, leased ones included."""
        first = next(self._oldest_first(), None)
        oldest = [ref.accepted_at_ms for ref in self.leased.values()]
        if first is not None:
            oldest.append(first.accepted_at_ms)
        return min(oldest, default=None)

    def stats(self) -> LaneStats:
        """The lane now."""
        return LaneStats(
            lane=self.number,
            key=self.key,
            events=self.events,
            bytes=self.bytes,
            in_flight_events=self.in_flight_events,
            oldest_accepted_at_ms=self.oldest_accepted_at_ms(),
            paused=self.paused,
            dead_chunks=self.dead_chunks,
        )

    def is_idle(self) -> bool:
        """Nothing queued, nothing on its way, no dead letter, no wish of an operator."""
        return not (self.events or self.pending_events or self.dead_chunks or self.paused)

    def _oldest_first(self) -> Iterator[Ref]:
        """Yield the first free chunk again and again: the caller drops it before it asks for the next."""
        while True:
            if self._returned and (self._head == len(self._ids) or self._returned[0][0] < self._ids[self._head]):
                yield self._returned[0][1]
            elif self._head < len(self._ids):
                at = self._head
                yield Ref(self._ids[at], self.number, self._events[at], self._sizes[at], self._accepted[at])
            else:
                return

    def _drop_first(self) -> None:
        if self._returned and (self._head == len(self._ids) or self._returned[0][0] < self._ids[self._head]):
            heapq.heappop(self._returned)
            return
        self._head += 1
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._ids):
            for column in (self._ids, self._events, self._sizes, self._accepted):
                del column[: self._head]
            self._head = 0

    def _unlease(self, ref: Ref) -> None:
        held = self.leased.pop(ref.id, None)
        assert held is not None, f"chunk {ref.id} is not leased"
        self.in_flight_events -= ref.events


class Lanes:
    """Every lane, by number and by key."""

    def __init__(self) -> None:
        self._by_number: dict[int, Lane] = {}
        self._by_key: dict[str, Lane] = {}
        self._last_number = 0

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Lane:
        return self._by_number[number]

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def of_key(self, key: str) -> Lane | None:
        """The key's lane, if it has one."""
        return self._by_key.get(key)

    def restore(self, rows: Iterable[LaneRow]) -> None:
        """Take over the lanes of an earlier life; of several with one key, new events go to the first."""
        for row in rows:
            self.recover(row.number, row.key, paused=row.paused)

    def recover(self, number: int, key: str, *, paused: bool) -> None:
        """Take over a lane of an earlier life."""
        self._add(Lane(number, key, paused=paused))

    def open(self, key: str) -> Lane:
        """Make a lane for a key that has none."""
        return self._add(Lane(self._last_number + 1, key))

    def find_idle(self) -> Lane | None:
        """Some lane that holds nothing, if there is one."""
        return next((lane for lane in self if lane.is_idle()), None)

    def forget(self, lane: Lane) -> None:
        """Drop an idle lane."""
        del self._by_number[lane.number]
        self._unname(lane)

    def rekey(self, lane: Lane, key: str) -> None:
        """Give a lane another key; a lane that has that key already goes on taking its new events."""
        self._unname(lane)
        lane.key = key
        self._by_key.setdefault(key, lane)

    def _add(self, lane: Lane) -> Lane:
        self._by_number[lane.number] = lane
        self._by_key.setdefault(lane.key, lane)
        self._last_number = max(self._last_number, lane.number)
        return lane

    def _unname(self, lane: Lane) -> None:
        if self._by_key.get(lane.key) is lane:
            del self._by_key[lane.key]
