"""What becomes of a batch, its lane and the host's gate after an attempt.

    DELIVERED ─► ack                         PARK, RETRY_LANE ─► the lane waits, the batch keeps
    BISECT, SPLIT ─► halves, down to the     RETRY_HOST ─► the gate learns, the batch waits; one that alone fails
      one event that is a dead letter;         while others get through is taken apart, slowly
      where nothing at all is taken, the     DOUBTFUL, MISCONFIGURED ─► the gate shuts, the batch keeps
      lane waits and keeps its events

Nothing here waits for the network. Whatever the disk will not do now is tried again later, and nothing is lost by it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from relay.errors import ChunkCorrupt, SpoolError
from relay.forwarder.batching import body_bytes, halve, halve_chunk
from relay.forwarder.delivery import Outcome, Verdict, backoff
from relay.observe import fingerprint
from relay.spool import Verdict as Epitaph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.forwarder.batching import Batch
    from relay.forwarder.clocks import Clocks
    from relay.forwarder.host import Host
    from relay.forwarder.journal import Journal
    from relay.forwarder.lanes import Lane
    from relay.forwarder.leases import Leases
    from relay.spool import Chunk

SUSPECT_FAILURES: Final = 5
"""Failures in a row, while others get through, that make a batch a suspect."""
SUSPECT_SECONDS: Final = 60.0
"""A suspect is tried about this often: ten halvings lead from 1,000 events to the one at fault in as many minutes."""
POISON_FAILURES: Final = 20
POISON_SECONDS: Final = 3600.0
"""A single event is given up after this many failures and this long, never sooner: what fails may be a deployment."""
REFUSALS_MAX: Final = 20
"""Where upstream refuses whatever it is sent, a single event is given up after this many refusals, an hour or so."""
OFF_LOOP_BYTES_MIN: Final = 1 << 18
"""Work on more bytes than this (about a millisecond) is done in a thread."""


class Patience(msgspec.Struct, frozen=True):
    """The operator's waits, in seconds."""

    retry_seconds_min: float
    retry_seconds_max: float
    park_probe_seconds: float


class Settler:
    """Applies outcomes; owns no state but that of the parts it is given."""

    def __init__(
        self,
        leases: Leases,
        host: Host,
        journal: Journal,
        patience: Patience,
        clocks: Clocks,
    ) -> None:
        self._leases = leases
        self._host, self._gate = host, host.gate
        self._journal = journal
        self._patience = patience
        self._random = clocks.random
        self._monotonic = clocks.monotonic

    async def settle(self, lane: Lane, key: str, batch: Batch, outcome: Outcome) -> None:
        """Apply the outcome of an attempt on `batch`, whose chunks are leased and were read."""
        chunks, batch.chunks = batch.chunks or (), None
        name = fingerprint(key)
        if outcome.verdict is not Verdict.DELIVERED:
            self._journal.attempt_failed(self._monotonic(), name, batch, outcome)
        match outcome.verdict:
            case Verdict.DELIVERED:
                self._delivered(lane, name, batch)
            case Verdict.RETRY_HOST:
                await self._host_failed(lane, key, batch, chunks, outcome)
            case Verdict.RETRY_LANE:
                self._lane_told_to_wait(lane, name, batch, outcome)
            case Verdict.PARK:
                self._park(lane, name, batch, outcome)
            case Verdict.MISCONFIGURED | Verdict.DOUBTFUL:
                self._shut(lane, batch, outcome)
            case Verdict.BISECT | Verdict.SPLIT:
                await self._refused(lane, key, batch, chunks, outcome)

    async def bury(self, lane: Lane, name: str, batch: Batch, epitaph: Epitaph) -> None:
        """Make dead letters of the batch; where the disk would not, it waits and is tried again."""
        try:
            await self._leases.bury(batch.refs, epitaph)
        except SpoolError as error:
            self._disk_failed(lane, name, batch, error)
        else:
            self._journal.buried(name, batch.events, epitaph.reason, f"HTTP {epitaph.status}" if epitaph.status else "")

    def rest(self, lane: Lane, batch: Batch, seconds: float) -> None:
        """Keep the batch for another attempt, as it is."""
        batch.chunks = None
        batch.ready_at = self._monotonic() + seconds
        lane.waiting.add(batch)

    def _delivered(self, lane: Lane, name: str, batch: Batch) -> None:
        self._leases.ack(batch.refs)
        if lane.parked or lane.failures:
            self._journal.lane_resumed(name)
        lane.healed()
        self._host.refusals.taken(lane.number)
        self._gate.succeeded()

    def _lane_told_to_wait(self, lane: Lane, name: str, batch: Batch, outcome: Outcome) -> None:
        self._gate.alive()
        seconds = self._slow_down(lane, name, outcome.summary, outcome.retry_after_seconds)
        # A status nobody has thought of may be this batch's own: it waits longer than its lane, so that others pass.
        batch.failures += outcome.status not in (425, 429)
        self.rest(lane, batch, seconds + self._backoff(batch.failures) if batch.failures else 0.0)

    def _slow_down(self, lane: Lane, name: str, cause: str, retry_after_seconds: float) -> float:
        """Have the lane wait, each time longer; give the seconds."""
        now, first = self._monotonic(), not lane.failures
        if first or lane.wait_until <= now:  # else one of several that were under way: told already
            lane.failures += 1
        seconds = max(self._backoff(lane.failures), retry_after_seconds)
        lane.back_off(now + seconds, cause)
        if first:
            self._journal.lane_backs_off(name, cause, seconds)
        return seconds

    def _park(self, lane: Lane, name: str, batch: Batch, outcome: Outcome) -> None:
        self._gate.alive()
        if not lane.parked:
            self._journal.lane_parked(name, outcome.summary)
        seconds = max(self._patience.park_probe_seconds, outcome.retry_after_seconds)
        lane.park(self._monotonic() + seconds, outcome.summary)
        self.rest(lane, batch, 0.0)

    def _shut(self, lane: Lane, batch: Batch, outcome: Outcome) -> None:
        seconds = max(self._patience.park_probe_seconds, outcome.retry_after_seconds)
        self._gate.shut(self._monotonic(), seconds=seconds, reason=outcome.summary)
        self.rest(lane, batch, 0.0)

    async def _refused(self, lane: Lane, key: str, batch: Batch, chunks: Sequence[Chunk], outcome: Outcome) -> None:
        """Upstream will not have it as it is: cut it, or set the one event aside."""
        self._gate.alive()
        lane.parked = False  # the key was not what upstream minded
        by_bytes = outcome.verdict is Verdict.SPLIT
        if by_bytes:
            size = body_bytes(chunks)
            if self._host.size.refused(self._monotonic(), size):
                self._journal.size_learned(size)
        name = fingerprint(key)
        seconds = self._brake(lane, name, batch, outcome)
        halves = await self._cut(lane, key, batch, chunks, by_bytes=by_bytes)
        if halves is None and seconds and batch.refusals < REFUSALS_MAX:
            halves = (batch,)
        if halves is None:
            self._host.refusals.refused(lane.number)
            await self.bury(lane, name, batch, _epitaph("too_large" if by_bytes else "rejected", batch, outcome))
        for half in halves or ():
            self.rest(lane, half, seconds)

    def _brake(self, lane: Lane, name: str, batch: Batch, outcome: Outcome) -> float:
        """Slow the lane down where upstream refuses whatever it is sent; give the seconds this batch has to wait."""
        if not self._host.refusals.of_everything(lane.number):
            lane.healed()
            return 0.0
        batch.refusals += 1
        lane.fresh_first = batch.attempts > 1  # by turns: one that was refused before, one that was not
        cause = f"{outcome.summary} to whatever it is sent"
        seconds = self._slow_down(lane, name, cause, outcome.retry_after_seconds)
        return seconds + self._backoff(batch.refusals)  # longer than its lane, so that others are tried

    async def _host_failed(self, lane: Lane, key: str, batch: Batch, chunks: Sequence[Chunk], outcome: Outcome) -> None:
        now = self._monotonic()
        alone = self._fails_alone(batch)
        if alone:
            batch.failures += 1
            batch.failing_since = now if batch.failing_since is None else batch.failing_since
        if not batch.suspect and batch.failures <= 1:
            wait = outcome.retry_after_seconds
            self._gate.failed(now, culprit=batch.first_id, reason=outcome.summary, retry_after_seconds=wait)
        else:
            self._gate.withdrawn()  # this batch says nothing about the host any more
        batch.host_score = (self._gate.successes, self._gate.failures)
        if alone and (batch.suspect or batch.failures >= SUSPECT_FAILURES):
            await self._isolate(lane, key, batch, chunks, outcome)
        else:
            self.rest(lane, batch, self._wait_after(batch, outcome, now))

    def _fails_alone(self, batch: Batch) -> bool:
        """Tell whether the host took more batches than it failed since this one was last heard of."""
        successes, failures = batch.host_score
        return self._gate.successes - successes > self._gate.failures - failures

    def _wait_after(self, batch: Batch, outcome: Outcome, now: float) -> float:
        own = self._suspect_seconds() if batch.suspect else self._backoff(max(1, batch.failures))
        if batch.failures:
            own = max(own, outcome.retry_after_seconds)
        # Behind a closed gate the batch that closed it goes last, so that another can show which of them is at fault.
        return own if self._gate.is_open else max(own, self._gate.opens_at - now)

    async def _isolate(self, lane: Lane, key: str, batch: Batch, chunks: Sequence[Chunk], outcome: Outcome) -> None:
        """It alone fails, again and again: look for the event at fault, at a pace that harms nobody."""
        if not batch.suspect:
            self._journal.isolating(fingerprint(key), batch, outcome.summary)
        batch.suspect = True
        halves = await self._cut(lane, key, batch, chunks, by_bytes=False)
        for half in halves or ():
            half.failures, half.failing_since = 0, None
            self.rest(lane, half, self._suspect_seconds())
        if halves is not None:
            return
        since = batch.failing_since
        if batch.failures >= POISON_FAILURES and since is not None and self._monotonic() - since >= POISON_SECONDS:
            await self.bury(lane, fingerprint(key), batch, _epitaph("poison", batch, outcome))
        else:
            self.rest(lane, batch, self._suspect_seconds())

    async def _cut(
        self, lane: Lane, key: str, batch: Batch, chunks: Sequence[Chunk], *, by_bytes: bool
    ) -> tuple[Batch, ...] | None:
        """Halve a batch; None for a single event. A chunk is first replaced on disk by its parts.

        Nothing comes back where there is nothing left to send: the disk would not, or the chunk is corrupt.
        """
        if len(batch.refs) > 1:
            return halve(batch, [chunk.text_bytes if by_bytes else chunk.events for chunk in chunks])
        if batch.events == 1:
            return None
        chunk, lane_key = chunks[0], self._leases.key_of(lane.number)
        try:
            if chunk.text_bytes >= OFF_LOOP_BYTES_MIN:
                parts = await asyncio.to_thread(halve_chunk, chunk, lane_key, by_bytes=by_bytes)
            else:
                parts = halve_chunk(chunk, lane_key, by_bytes=by_bytes)
            refs = await self._leases.replace(batch.refs[0], parts)
        except ChunkCorrupt as error:
            await self.bury(lane, fingerprint(key), batch, Epitaph("corrupt", str(error)))
            return ()
        except SpoolError as error:
            self._disk_failed(lane, fingerprint(key), batch, error)
            return ()
        return tuple(batch.part([ref]) for ref in refs)

    def _disk_failed(self, lane: Lane, name: str, batch: Batch, error: SpoolError) -> None:
        batch.disk_failures += 1
        self._journal.spool_failed(self._monotonic(), name, error)
        self.rest(lane, batch, self._backoff(batch.disk_failures))

    def unread(self, lane: Lane, name: str, batch: Batch | None, error: SpoolError) -> None:
        """The chunks could not be read: nothing was sent, and all of it waits, each time longer."""
        if batch is not None:
            self._disk_failed(lane, name, batch, error)
            return
        self._journal.spool_failed(self._monotonic(), name, error)
        lane.failures += 1
        lane.back_off(self._monotonic() + self._backoff(lane.failures), "the queue could not be read")

    def _backoff(self, attempt: int) -> float:
        return backoff(
            attempt,
            seconds_min=self._patience.retry_seconds_min,
            seconds_max=self._patience.retry_seconds_max,
            random=self._random,
        )

    def _suspect_seconds(self) -> float:
        return SUSPECT_SECONDS * (0.5 + self._random())


def _epitaph(reason: str, batch: Batch, outcome: Outcome) -> Epitaph:
    return Epitaph(
        reason=reason,
        detail=outcome.detail or outcome.summary,
        status=outcome.status,
        attempts=batch.attempts,
        first_attempt_at_ms=batch.first_attempt_at_ms,
    )
