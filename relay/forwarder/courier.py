"""Takes one batch upstream: reads its chunks, makes the POST, judges the answer; decides nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from relay.forwarder.body import assemble, headers
from relay.forwarder.delivery import Outcome, judge
from relay.forwarder.settling import OFF_LOOP_BYTES_MIN

if TYPE_CHECKING:
    from relay.forwarder.batching import Batch
    from relay.forwarder.body import Compression
    from relay.forwarder.clocks import Clocks
    from relay.forwarder.delivery import Success
    from relay.forwarder.upstream import Poster


class Trip(msgspec.Struct, frozen=True):
    """One attempt that has ended."""

    outcome: Outcome
    bytes: int
    """Of the body on the wire."""
    seconds: float
    raced: bool


class Courier:
    """Posts batches whose chunks have been read."""

    def __init__(self, upstream: Poster, clocks: Clocks, *, success: Success, compression: Compression) -> None:
        self._upstream = upstream
        self._success: Success = success
        self._compression: Compression = compression
        self._monotonic = clocks.monotonic
        self._wall = clocks.wall

    async def carry(self, key: str, batch: Batch, *, seconds_max: float) -> Trip:
        """Make one attempt; raises ChunkCorrupt before anything is sent where a chunk cannot be inflated.

        Cancelled, it tells nothing: the batch may have arrived.
        """
        chunks = batch.chunks
        assert chunks, "read the chunks first"
        stored_bytes = sum(len(chunk.body) for chunk in chunks)  # deflated ones only have to be put together
        if self._compression == "gzip" and stored_bytes < OFF_LOOP_BYTES_MIN:
            body = assemble(chunks, self._compression)
        else:
            body = await asyncio.to_thread(assemble, chunks, self._compression)
        now_ms = round(self._wall() * 1000)
        head = headers(key, chunks, encoding=body.encoding, attempts=batch.attempts, now_ms=now_ms)
        batch.first_attempt_at_ms = batch.first_attempt_at_ms or now_ms
        batch.attempts += 1
        began = self._monotonic()
        attempt = await self._upstream.post(body.data, head, seconds_max=seconds_max)
        seconds = self._monotonic() - began
        outcome = judge(attempt.answer, success=self._success, now_ms=round(self._wall() * 1000))
        return Trip(outcome, len(body.data), seconds, attempt.raced)
