"""What the forwarder holds of the spool, so that every chunk is settled once and none stays held when it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import SpoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.forwarder.batching import Bounds
    from relay.spool import Chunk, LaneStats, Record, Ref, Spool, Verdict


class Leases:
    """A spool, with a list of what is leased.

    What is being buried or replaced is off the list until that is done: cancelled half-way, nobody can say whether it
    happened, so it is left to the spool.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._held: dict[int, Ref] = {}

    def __len__(self) -> int:
        return len(self._held)

    def lease(self, lane: int, bounds: Bounds) -> list[Ref]:
        """Take the lane's oldest free chunks."""
        refs = self._spool.lease(lane, events_max=bounds.events_max, bytes_max=bounds.bytes_max)
        self._held.update((ref.id, ref) for ref in refs)
        return refs

    def key_of(self, lane: int) -> str:
        """Give the lane's API key; empty for the default lane."""
        return self._spool.key_of(lane)

    def lanes(self) -> list[LaneStats]:
        """Every lane that holds events."""
        return self._spool.lanes()

    async def read(self, refs: Sequence[Ref]) -> list[tuple[Ref, Chunk]]:
        """Read leased chunks; the spool has set the corrupt ones aside, so they are held no more."""
        chunks = {chunk.id: chunk for chunk in await self._spool.read(refs)}
        for ref in refs:
            if ref.id not in chunks:
                del self._held[ref.id]
        return [(ref, chunks[ref.id]) for ref in refs if ref.id in chunks]

    def ack(self, refs: Sequence[Ref]) -> None:
        """Settle as delivered."""
        self._forget(refs)
        self._spool.ack(refs)

    def release(self, refs: Sequence[Ref]) -> None:
        """Give back."""
        self._forget(refs)
        self._spool.release(refs)

    async def bury(self, refs: Sequence[Ref], verdict: Verdict) -> None:
        """Set aside as dead letters; raises SpoolError, and holds them still, where the disk would not."""
        self._forget(refs)
        try:
            await self._spool.bury(refs, verdict)
        except SpoolError:
            self._held.update((ref.id, ref) for ref in refs)
            raise

    async def replace(self, ref: Ref, parts: Sequence[Record]) -> list[Ref]:
        """Put parts in a chunk's place; raises SpoolError, and holds it still, where the disk would not."""
        self._forget([ref])
        try:
            refs = await self._spool.replace(ref, parts)
        except SpoolError:
            self._held[ref.id] = ref
            raise
        self._held.update((part.id, part) for part in refs)
        return refs

    def release_all(self) -> None:
        """Give everything back: nothing of it was delivered, or nobody can prove it."""
        if self._held:
            self.release(list(self._held.values()))

    def _forget(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            del self._held[ref.id]
