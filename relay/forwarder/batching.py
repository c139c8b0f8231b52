"""Which chunks travel together, and how a refused batch is cut; pure.

Two chunks share a POST only where everything that upstream sees beside their events is the same. A batch keeps its
composition for life, so that a repeat carries the same id; it is only ever cut, never mixed anew.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from relay.spool import Chunk, Record, Ref
from relay.wire import split_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BODY_FRAME_BYTES: Final = len(b'{"events":[],}')
_ID_BYTES: Final = 16


class Bounds(msgspec.Struct, frozen=True):
    """What one POST may hold."""

    events_max: int
    bytes_max: int
    """Of the body before compression, envelope included."""


@dataclass(slots=True, eq=False)
class Batch:
    """Leased chunks that travel in one POST, and what has become of it so far."""

    refs: tuple[Ref, ...]
    chunks: tuple[Chunk, ...] | None = None
    """Their bodies, only from being read to the end of the next attempt; waiting costs no memory."""
    ready_at: float = 0.0
    """Monotonic; not before this."""
    attempts: int = 0
    first_attempt_at_ms: int = 0
    failures: int = 0
    """In a row, on its own: while the host took other batches."""
    failing_since: float | None = None
    """Monotonic; of the first of these."""
    refusals: int = 0
    """While upstream refused whatever it was sent."""
    disk_failures: int = 0
    """Times that the disk would not do what settling it needs."""
    suspect: bool = False
    """It alone fails, again and again: being taken apart to find the event at fault, slowly."""
    host_score: tuple[int, int] = field(default=(0, 0))
    """The host's successes and failures when this batch was last heard of."""

    @property
    def first_id(self) -> int:
        """Its oldest chunk: its place in the lane, and its name among batches."""
        return self.refs[0].id

    @property
    def events(self) -> int:
        """Events in it."""
        return sum(ref.events for ref in self.refs)

    @property
    def stored_bytes(self) -> int:
        """What its chunks take on disk, and in memory while they are read."""
        return sum(ref.bytes for ref in self.refs)

    def part(self, refs: Sequence[Ref]) -> Batch:
        """Give a batch of some of its chunks, or of what replaced them, that inherits its past."""
        return replace(self, refs=tuple(refs), chunks=None)


def plan(pairs: Iterable[tuple[Ref, Chunk]], bounds: Bounds) -> list[Batch]:
    """Compose batches of chunks of one lane, oldest first, each within `bounds` or a single chunk."""
    groups: dict[tuple[bytes, bytes, int | None], list[tuple[Ref, Chunk]]] = {}
    for ref, chunk in pairs:
        groups.setdefault(chunk.travels_with(), []).append((ref, chunk))
    batches = [batch for group in groups.values() for batch in _cut(group, bounds)]
    return sorted(batches, key=lambda batch: batch.first_id)


def body_bytes(chunks: Sequence[Chunk]) -> int:
    """Length of the body that these chunks make, before compression."""
    return BODY_FRAME_BYTES + len(chunks[0].envelope) + sum(chunk.text_bytes + 1 for chunk in chunks)


def batch_id(key: str, chunks: Sequence[Chunk]) -> str:
    """Name what travels: the same chunks under the same key have the same name, after a crash too.

    Chunk ids are in it, so that two alike events sent one after the other are two batches to a receiver that
    recognises repeats.
    """
    digest = hashlib.blake2b(digest_size=_ID_BYTES)
    for part in (key.encode("utf-8", "surrogateescape"), chunks[0].envelope, chunks[0].headers):
        digest.update(len(part).to_bytes(8, "little") + part)
    for chunk in chunks:
        numbers = (chunk.id, chunk.accepted_at_ms, chunk.events, chunk.text_bytes, chunk.text_crc32)
        digest.update(b"".join(number.to_bytes(8, "little", signed=True) for number in numbers))
    return digest.hexdigest()


def halve(batch: Batch, sizes: Sequence[int]) -> tuple[Batch, Batch]:
    """Cut a batch of several chunks in two of about equal size; `sizes` are those of its chunks, in order."""
    cut = _middle(sizes)
    return batch.part(batch.refs[:cut]), batch.part(batch.refs[cut:])


def halve_chunk(chunk: Chunk, key: str, *, by_bytes: bool) -> tuple[Record, Record]:
    """Cut a chunk of several events into two records that hold the same raw events, in order.

    Raises ChunkCorrupt where its body does not inflate.
    """
    events = split_events(chunk.text())
    cut = _middle([len(event) if by_bytes else 1 for event in events])
    return _record(chunk, key, events[:cut]), _record(chunk, key, events[cut:])


def carve_smallest(batch: Batch) -> tuple[Batch, Batch | None]:
    """Take the smallest chunk out of a batch as a batch of its own; the rest, if there is any, comes second."""
    if len(batch.refs) == 1:
        return batch, None
    smallest = min(batch.refs, key=lambda ref: ref.bytes)
    return batch.part([smallest]), batch.part([ref for ref in batch.refs if ref is not smallest])


class Waiting:
    """The batches of a lane that wait to be sent: those due, oldest first; the others until they are.

    What upstream refused while it refused everything takes turns, by the time it fell due, after all others.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Batch]] = []
        self._resting: list[tuple[float, int, Batch]] = []

    def __len__(self) -> int:
        return len(self._due) + len(self._resting)

    def add(self, batch: Batch) -> None:
        """Put a batch in its place."""
        heapq.heappush(self._resting, (batch.ready_at, batch.first_id, batch))

    def next_at(self) -> float | None:
        """When the next batch is due; None without one."""
        if self._due:
            return 0.0
        return self._resting[0][0] if self._resting else None

    def take(self, now: float) -> Batch | None:
        """Take out the oldest batch that is due."""
        while self._resting and self._resting[0][0] <= now:
            _, first_id, batch = heapq.heappop(self._resting)
            turn = batch.ready_at if batch.refusals else float("-inf")
            heapq.heappush(self._due, (turn, first_id, batch))
        return heapq.heappop(self._due)[2] if self._due else None

    def take_smallest(self, now: float) -> Batch | None:
        """Take out the smallest that is due: what a probe risks."""
        due: list[Batch] = []
        while batch := self.take(now):
            due.append(batch)
        due.sort(key=lambda batch: batch.stored_bytes)
        for other in due[1:]:
            self.add(other)
        return due[0] if due else None

    def clear(self) -> list[Batch]:
        """Take out all of them."""
        batches = [batch for _, _, batch in self._due + self._resting]
        self._due, self._resting = [], []
        return batches


def _cut(group: list[tuple[Ref, Chunk]], bounds: Bounds) -> Iterable[Batch]:
    envelope_bytes = BODY_FRAME_BYTES + len(group[0][1].envelope)
    start = events = 0
    size = envelope_bytes
    for at, (_, chunk) in enumerate(group):
        grown = size + chunk.text_bytes + 1
        if at > start and (events + chunk.events > bounds.events_max or grown > bounds.bytes_max):
            yield _batch(group[start:at])
            start, events, grown = at, 0, envelope_bytes + chunk.text_bytes + 1
        events += chunk.events
        size = grown
    yield _batch(group[start:])


def _batch(pairs: Sequence[tuple[Ref, Chunk]]) -> Batch:
    return Batch(refs=tuple(ref for ref, _ in pairs), chunks=tuple(chunk for _, chunk in pairs))


def _middle(sizes: Sequence[int]) -> int:
    """Where to cut so that the halves are as equal as may be, and neither is empty."""
    assert len(sizes) > 1, "one cannot be halved"
    total, before, best = sum(sizes), 0, (float("inf"), 1)
    for at, size in enumerate(sizes[:-1], start=1):
        before += size
        best = min(best, (abs(total - 2 * before), at))
    return best[1]


def _record(chunk: Chunk, key: str, events: Sequence[bytes]) -> Record:
    return Record(
        key=key,
        envelope=chunk.envelope,
        headers=chunk.headers,
        text=b",".join(events),
        events=len(events),
        accepted_at_ms=chunk.accepted_at_ms,
        skew_ms=chunk.skew_ms,
    )
