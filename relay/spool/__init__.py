"""The durable queue: records go in, chunks of a lane come out, and leave the disk only when they are settled.

    append(records) ──► writer thread ──one transaction──► SQLite (WAL, synchronous=FULL)
          ▲ durable        │ inserts of new chunks AND deletes of settled ones, one fsync
          └── the fsync ◄──┘
    lease(lane) ──► refs ──read(refs)──► chunks ──► ack   (gone with the next commit)
                                               ├──► release (leasable again, in its old place)
                                               ├──► bury    (marked in place: a dead letter)
                                               └──► replace (its parts take its place, in one transaction)

Invariants, in events, for the life of a process:

    recovered + enqueued = acked + dead-lettered + queued          (a leased chunk is queued)
    dead recovered + dead-lettered = replayed + dropped + dead held

A chunk is leased to one holder at a time. Nothing is deleted but by ack, replace, an operator, and the bound on dead
letters. A chunk's place in its lane is its id; ids only grow, across restarts too. A dead letter that is replayed gets
a new id, and its age begins again. A lane may be given another key: its chunks stay where they are, and travel under
that key from the next attempt on.

    spool      the face: admits, leases, keeps the books       writer     the thread that commits
    room, books, index, paging, recent, mirror, graveyard: its parts      store  transactions and reads
    record     a chunk's bytes     folder   lock and fitness   table      the file's schema and settings
    letters    dead letters        reader   for tools          salvage    what to save of a damaged file
    wal        SQLite's log by its frames                      logcheck   what it hides, before SQLite opens it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from relay.spool.record import Chunk, Record, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from relay.errors import NotNow

__all__ = ["Chunk", "LaneStats", "Record", "Ref", "Spool", "Stats", "Verdict"]

DEFAULT_LANE_KEY = ""
"""The key under which requests without one are kept; the real key is found at send time."""


class Ref(msgspec.Struct, frozen=True, gc=False):
    """A chunk by its index entry: enough to plan with, without reading its body."""

    id: int
    lane: int
    events: int
    bytes: int
    """Stored size of the row's bytes."""
    accepted_at_ms: int


class LaneStats(msgspec.Struct, frozen=True):
    """One lane now; in-flight events count as queued."""

    lane: int
    key: str
    events: int
    bytes: int
    in_flight_events: int
    oldest_accepted_at_ms: int | None
    """None where the lane is empty."""
    paused: bool = False
    """Held by an operator."""
    dead_chunks: int = 0


class Stats(msgspec.Struct, frozen=True):
    """The whole spool now, and its counters since the process began."""

    refusal: str
    """Why nothing can be made durable now; empty where it can."""
    recovering: bool
    """The index of an earlier life is still loading; the numbers below grow until it ends."""
    events: int
    bytes: int
    """Live bytes that count against the capacity: pages in use, dead letters among them."""
    capacity_bytes: int
    in_flight_events: int
    recovered_events: int
    enqueued_events: int
    acked_events: int
    dead_events: int
    dead_recovered_events: int
    dead_lettered_events: Mapping[str, int]
    """By reason."""
    dead_replayed_events: int
    dropped_events: Mapping[str, int]
    """By reason."""
    disk_free_bytes: int
    disk_size_bytes: int
    volatile: bool
    """The folder lies in memory (tmpfs): a restart of the machine loses it."""


class Spool(Protocol):
    """The face every engine shows; one contract suite holds them all to it. Called from the event loop only."""

    async def append(self, records: Sequence[Record], *, deadline: float) -> None:
        """Return once every record is on disk, all in one transaction; `deadline` is in event-loop seconds.

        Raises QueueFull, DiskFailing, AnswerDue or Starting; nothing of the records is kept then, save where
        `AnswerDue.ambiguous` says that it may be.
        """
        ...

    def submit(self, records: Sequence[Record], *, deadline: float, done: Callable[[NotNow | None], None]) -> None:
        """Like `append`, without a coroutine: `done` is called once, with None or with what append would raise.

        What is refused at once is raised here, and `done` is not called.
        """
        ...

    def subscribe(self, wake: Callable[[int], None]) -> None:
        """Have `wake(lane)` called on the loop whenever a lane gets chunks that can be leased."""
        ...

    def bound_share_of(self, is_held_back: Callable[[int], bool]) -> None:
        """Have lanes for which this is true (they back off or are parked) kept within their share of the queue."""
        ...

    def key_of(self, lane: int) -> str:
        """Give the lane's API key; empty for the default lane."""
        ...

    def lease(self, lane: int, *, events_max: int, bytes_max: int) -> list[Ref]:
        """Take the lane's oldest free chunks, at least one if there is any, within both bounds (stored bytes)."""
        ...

    async def read(self, refs: Sequence[Ref]) -> list[Chunk]:
        """Read leased chunks, in order; those that are corrupt are set aside as dead letters and left out."""
        ...

    def ack(self, refs: Sequence[Ref]) -> None:
        """Settle leased chunks as delivered: they are deleted with the next commit."""
        ...

    def release(self, refs: Sequence[Ref]) -> None:
        """Give leased chunks back, not delivered; they keep their place."""
        ...

    async def bury(self, refs: Sequence[Ref], verdict: Verdict) -> None:
        """Set leased chunks aside as dead letters, in place; returns when that is on disk."""
        ...

    async def replace(self, ref: Ref, parts: Sequence[Record]) -> list[Ref]:
        """Put `parts`, which hold the same events, in a leased chunk's place in one transaction, leased likewise."""
        ...

    def lanes(self) -> list[LaneStats]:
        """Every lane that holds events."""
        ...

    def stats(self) -> Stats:
        """The whole spool now; cheap enough for every scrape."""
        ...
