"""Turns a body into records for the spool: at once where that is quick, else in a thread, and within its time.

    body ──inflate──► JSON ──parse_body──► events ──cut──► records

Whoever writes the body chooses what it costs: 40 KB of the wrong kind take a hundred times as long as an SDK's batch
of that size. So the loop's own try has bounds of its own, far below the operator's, and what does not fit in them is
taken to a thread.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from relay import wire
from relay.errors import Busy, TooLarge
from relay.spool import Record, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from relay.listener.limits import Limits
    from relay.listener.memory import Reservation
    from relay.listener.resends import Resends

INLINE_BYTES_MAX: Final = 64 * 1024
"""Bodies up to this are read on the loop; an SDK's of this size takes 0.15 ms (measured 2026-11)."""
INLINE_COMPRESSED_BYTES_MAX: Final = 8 * 1024
"""The same for compressed ones: honest SDK bodies shrink up to 31 to 1."""
INLINE_INFLATED_BYTES_MAX: Final = 128 * 1024
"""And what they may grow to on the loop."""
INLINE_MARKS_MAX: Final = 4096
"""Commas and opening brackets in what is not usual and yet read on the loop: each may cost 5 µs in a body made for it
(measured 2026-11), and an SDK's body has one every 18 to 23 bytes."""
INLINE_ENVELOPE_BYTES_MAX: Final = 4 * 1024
HONEST_RATIO: Final = 40
"""Inflated bytes that are expected at first of each compressed one; hundreds of like exposures reach 60 and more."""
INFLATED_BYTES_MIN: Final = 1024 * 1024
"""Expected at first of any body."""
COPIES: Final = 3
"""What reading takes of each byte of JSON at its peak: the body, its events, and the records cut from them."""

T = TypeVar("T")


class Digest(NamedTuple):
    """A body that is taken."""

    records: list[Record]
    """Of its usable events, then of those that are not."""
    events: int
    """All of them, usable or not."""
    bytes: int
    """Of the usable events' text."""
    rejected: tuple[wire.Rejected, ...]
    suspects: Mapping[str, int]
    marks: list[int]
    """One for each usable event, by which a repeat is told; empty where repeats cannot be told."""
    suppressed: int = 0
    """Events that an earlier request has stored; no record holds them."""


class Arrival(msgspec.Struct, frozen=True):
    """A body as it came, and what was known before it."""

    body: bytes
    coding: str
    """Content-Encoding; empty where there was none."""
    head: wire.Head
    received_at_ms: int
    """Unix milliseconds at which the head came: the client's clock is compared with that."""


class Intake:
    """Reads bodies. Called from the event loop only."""

    def __init__(
        self,
        limits: Limits,
        *,
        strip_private: bool,
        resends: Resends | None,
        decoders: Executor,
        now_ms: Callable[[], int],
    ) -> None:
        """`decoders` runs what is too much for the loop; without `resends` every event is taken for a new one."""
        self._limits = limits
        self._wire_limits = wire.Limits(
            event_bytes_max=limits.event_bytes_max,
            events_per_request_max=limits.events_per_request_max,
            envelope_bytes_max=limits.envelope_bytes_max,
        )
        self._quick_limits = wire.Limits(
            event_bytes_max=limits.event_bytes_max,
            events_per_request_max=limits.events_per_request_max,
            envelope_bytes_max=min(INLINE_ENVELOPE_BYTES_MAX, limits.envelope_bytes_max),
        )
        self._strip_private = strip_private
        self._resends = resends
        self._decoders = decoders
        self._now_ms = now_ms

    async def digest(self, arrival: Arrival, reservation: Reservation, *, deadline: float) -> Digest:
        """Read a body; `deadline` is in event-loop seconds. Raises any Refusal that the body or the room deserves."""
        quick = self.digest_at_once(arrival, reservation)
        return quick or self._without_repeats(arrival, await self._digest_elsewhere(arrival, reservation, deadline))

    def stored(self, digest: Digest) -> None:
        """Remember what is on the disk now, so that a repeat of it is known."""
        if digest.marks and self._resends is not None:
            self._resends.stored(digest.marks)

    async def _digest_elsewhere(self, arrival: Arrival, reservation: Reservation, deadline: float) -> Digest:
        size = len(arrival.body)
        if not wire.needs_inflating(arrival.body):
            reservation.set(COPIES * size)
            done = await self._in_thread(partial(self._parse_and_digest, arrival, arrival.body), reservation, deadline)
            reservation.set(_held_by(done))
            return done
        cap = self._limits.inflated_bytes_max
        for expected in _bounds(size, cap):
            reservation.set(size + COPIES * expected)
            work = partial(self._inflate_and_digest, arrival, expected)
            inflated = await self._in_thread(work, reservation, deadline)
            if inflated is not None:
                reservation.set(_held_by(inflated))
                return inflated
        raise AssertionError("at the full cap an excess raises")

    # -- on the loop --------------------------------------------------------------------------------------------------

    def digest_at_once(self, arrival: Arrival, reservation: Reservation) -> Digest | None:
        """Read a body of which that is known to be quick; None for any other."""
        raw = self._inflate_at_once(arrival)
        if raw is None:
            return None
        reservation.set(len(arrival.body) + COPIES * len(raw))
        try:
            parsed = wire.parse_usual(raw, limits=self._quick_limits, strip_private=self._strip_private)
            if parsed is None:
                if len(raw) - len(raw.translate(None, b",[{")) > INLINE_MARKS_MAX:
                    return None
                parsed = self._parse(arrival, raw, self._quick_limits)
        except TooLarge:
            return None  # past the loop's bounds; a thread finds out whether past the operator's too
        return self._without_repeats(arrival, self._digest(arrival, parsed))

    def _inflate_at_once(self, arrival: Arrival) -> bytes | None:
        if not wire.needs_inflating(arrival.body):
            return arrival.body if len(arrival.body) <= INLINE_BYTES_MAX else None
        if len(arrival.body) > INLINE_COMPRESSED_BYTES_MAX:
            return None
        return self._inflate(arrival, min(INLINE_INFLATED_BYTES_MAX, self._limits.inflated_bytes_max))

    def _without_repeats(self, arrival: Arrival, digest: Digest) -> Digest:
        """Leave out the events that an earlier request has stored."""
        if not digest.marks or self._resends is None:
            return digest
        new = self._resends.are_new(digest.marks)
        if all(new):
            return digest
        events = [event for record in digest.records if record.dead is None for event in wire.split_events(record.text)]
        kept = [event for event, is_new in zip(events, new, strict=True) if is_new]
        parsed = wire.Parsed(
            text=b",".join(kept),
            events=len(kept),
            envelope=digest.records[0].envelope,
            rejected=digest.rejected,
            suspects=digest.suspects,
        )
        return digest._replace(
            records=self._records(parsed, arrival.head, digest.records[0].skew_ms),
            marks=[mark for mark, is_new in zip(digest.marks, new, strict=True) if is_new],
            suppressed=len(events) - len(kept),
        )

    # -- anywhere -----------------------------------------------------------------------------------------------------

    def _inflate_and_digest(self, arrival: Arrival, bytes_max: int) -> Digest | None:
        raw = self._inflate(arrival, bytes_max)
        return None if raw is None else self._parse_and_digest(arrival, raw)

    def _inflate(self, arrival: Arrival, bytes_max: int) -> bytes | None:
        """Inflate; None where it passes a bound that is not the operator's yet."""
        try:
            return wire.inflate(arrival.body, arrival.coding, arrival.head.gzip_claimed, inflated_bytes_max=bytes_max)
        except TooLarge:
            if bytes_max < self._limits.inflated_bytes_max:
                return None
            raise

    def _parse_and_digest(self, arrival: Arrival, raw: bytes) -> Digest:
        return self._digest(arrival, self._parse(arrival, raw, self._wire_limits))

    def _parse(self, arrival: Arrival, raw: bytes, limits: wire.Limits) -> wire.Parsed:
        return wire.parse_body(
            raw,
            limits=limits,
            now_ms=arrival.received_at_ms,
            skew_ms=arrival.head.skew_ms(arrival.received_at_ms),
            strip_private=self._strip_private,
        )

    def _digest(self, arrival: Arrival, parsed: wire.Parsed) -> Digest:
        return Digest(
            self._records(parsed, arrival.head, arrival.head.skew_ms(arrival.received_at_ms)),
            parsed.events + len(parsed.rejected),
            len(parsed.text),
            parsed.rejected,
            parsed.suspects,
            self._marks(parsed, arrival.head),
        )

    def _marks(self, parsed: wire.Parsed, head: wire.Head) -> list[int]:
        """Give each event's mark, where the request belongs to an SDK's session and its events have their times."""
        if self._resends is None:
            return []
        if head.batch_id:  # of another relay: the batch is the same at each attempt, whatever is in it
            return self._resends.hashes(head.key, head.batch_id, [b"%d" % at for at in range(parsed.events)])
        if not head.session_id or parsed.stamped:
            return []
        return self._resends.hashes(head.key, head.session_id, wire.split_events(parsed.text))

    def _records(self, parsed: wire.Parsed, head: wire.Head, skew_ms: int | None) -> list[Record]:
        now_ms = self._now_ms()

        def record(text: bytes, events: int, dead: Verdict | None = None) -> Record:
            return Record(head.key, parsed.envelope, head.headers, text, events, now_ms, skew_ms, dead)

        limits = self._limits
        pieces = wire.cut(
            parsed.text, parsed.events, events_max=limits.chunk_events_max, bytes_max=limits.chunk_bytes_max
        )
        records = [record(text, events) for text, events in pieces if events]
        if parsed.rejected:
            records += [record(text, events, verdict) for text, events, verdict in self._letters(parsed.rejected)]
        return records

    def _letters(self, rejected: Sequence[wire.Rejected]) -> Iterator[tuple[bytes, int, Verdict]]:
        """Put events that were rejected for the same reason together: a body may hold 20,000 of them."""
        alike: dict[tuple[str, str], list[bytes]] = {}
        for one in rejected:
            alike.setdefault((one.reason, one.message), []).append(one.raw)
        for (reason, message), raws in alike.items():
            for pack in self._packs(raws):
                yield b",".join(pack), len(pack), Verdict(reason=reason, detail=message)

    def _packs(self, raws: Sequence[bytes]) -> Iterator[list[bytes]]:
        pack: list[bytes] = []
        size = 0
        for raw in raws:
            if pack and (len(pack) == self._limits.chunk_events_max or size + len(raw) > self._limits.chunk_bytes_max):
                yield pack
                pack, size = [], 0
            pack.append(raw)
            size += len(raw) + 1  # its comma
        yield pack

    # -- in a thread --------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T], reservation: Reservation, deadline: float) -> T:
        """Run `work` with the decoders; past the deadline raise Busy, and leave its memory reserved until it ends."""
        job = self._decoders.submit(work)
        future = asyncio.wrap_future(job)
        try:
            await asyncio.wait({future}, timeout=deadline - asyncio.get_running_loop().time())
            if future.done():
                return future.result()
            if not job.cancel():  # it runs, and a thread cannot be interrupted
                left = reservation.hand_over()
                future.add_done_callback(partial(_give_back, left))
            raise Busy("big requests keep the relay busy; send it again in a moment")
        finally:
            # An error's traceback holds this frame, and all that was inflated; did the frame hold the error in turn,
            # nothing of it would go before the collector comes round.
            del future, job


def _bounds(size: int, cap: int) -> Iterator[int]:
    """How far to inflate so many bytes, try by try: each reserves memory, and few need all that the operator allows."""
    bound = max(HONEST_RATIO * size, INFLATED_BYTES_MIN)
    while bound < cap:
        yield bound
        bound *= 4
    yield cap


def _held_by(digest: Digest) -> int:
    return sum(len(record.text) for record in digest.records)


def _give_back(left: Reservation, ended: asyncio.Future[T]) -> None:
    """Release what work held that nobody waits for; that it failed interests nobody either."""
    if not ended.cancelled():
        ended.exception()
    left.release()
