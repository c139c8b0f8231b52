"""Chunks to batches to upstream, and each settled by what was answered: the forwarder's one loop.

    spool ─wake(lane)─► Lanes ─whose turn─► gather ─► compose ─► Courier ─Outcome─► Settler ─► ack, keep, cut, bury
                          ▲  Gate, Cadence, Ceiling: may one start now?                 │
                          └──────────────────────────── the lane goes back ◄────────────┘

The loop sleeps until something happens or the first of its times comes; it never polls. Each batch under way is one
task of one group. What is leased when it ends is given back: only an answer that proves delivery acks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from relay.errors import ChunkCorrupt, SpoolError
from relay.forwarder.batching import Batch, Bounds, body_bytes, carve_smallest, plan
from relay.forwarder.clocks import Clocks
from relay.forwarder.courier import Courier
from relay.forwarder.delivery import Verdict
from relay.forwarder.expiry import split_old
from relay.forwarder.figures import Figures, Numbers
from relay.forwarder.host import Host
from relay.forwarder.journal import Journal
from relay.forwarder.lanes import COALESCE_SECONDS, Lane, Lanes
from relay.forwarder.leases import Leases
from relay.forwarder.settling import Patience, Settler
from relay.forwarder.sweeping import Sweeper, expired_epitaph
from relay.observe import fingerprint
from relay.spool import Verdict as Epitaph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.forwarder.body import Compression
    from relay.forwarder.courier import Trip
    from relay.forwarder.delivery import Success
    from relay.forwarder.upstream import Poster
    from relay.observe import Outcome as Label
    from relay.spool import Chunk, Ref, Spool

NO_KEY: Final = "no key: the requests brought none, and upstream.api_key_file gives none"
DRAIN_ATTEMPT_SECONDS_MIN: Final = 1.0
"""While draining, an attempt starts only with this long left, and twice what the slowest success lately took: its
time-out is what is left, and one that is cut off would be in doubt."""


class Observer(Protocol):
    """Whoever counts."""

    def attempt_ended(self, outcome: Label, events: int, bytes: int, seconds: float) -> None:  # noqa: A002  as in observe
        """One POST ended; `bytes` of its body on the wire."""
        ...

    def batch_delivered(self, events: int, delays: Sequence[tuple[float, int]]) -> None:
        """Upstream took a batch; `delays` holds (seconds since accepted, events) of each chunk."""
        ...


class Forwarder:
    """Delivers what the spool holds. Use from one event loop: `run` it, `drain` it, then cancel `run`."""

    def __init__(
        self,
        *,
        spool: Spool,
        upstream: Poster,
        default_key: Callable[[], str | None],
        observer: Observer,
        host: str,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
        batch_events_max: int = 1000,
        batch_bytes_max: int = 4 << 20,
        in_flight_max: int = 8,
        retry_seconds_min: float = 1.0,
        retry_seconds_max: float = 300.0,
        park_probe_seconds: float = 60.0,
        success: Success = "statsig",
        compression: Compression = "gzip",
        events_per_second_max: float = 0.0,
        age_seconds_max: float = 7 * 86400.0,
    ) -> None:
        """`monotonic` must be the event loop's clock, `wall` gives Unix seconds, `random` gives [0, 1)."""
        self._spool, self._upstream, self._observer = spool, upstream, observer
        self._default_key, self._monotonic, self._wall = default_key, monotonic, wall
        self._in_flight_max, self._batch_bytes_max = in_flight_max, batch_bytes_max
        self._patience = Patience(retry_seconds_min, retry_seconds_max, park_probe_seconds)
        self._host = Host(
            in_flight_max=in_flight_max,
            retry_seconds_min=retry_seconds_min,
            retry_seconds_max=retry_seconds_max,
            batch_events_max=batch_events_max,
            batch_bytes_max=batch_bytes_max,
            events_per_second_max=events_per_second_max,
            random=random,
        )
        self._gate = self._host.gate
        self._lanes, self._leases = Lanes(), Leases(spool)
        self._journal, self._figures = Journal(host=host), Figures()
        clocks = Clocks(monotonic, wall, random)
        self._courier = Courier(upstream, clocks, success=success, compression=compression)
        self._settler = Settler(self._leases, self._host, self._journal, self._patience, clocks)
        parts = (self._leases, self._lanes, self._settler, self._journal, clocks)
        self._sweeper = Sweeper(*parts, age_seconds_max=age_seconds_max, wake=self._wake, hold=self.pause)
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._posting: set[asyncio.Task[None]] = set()  # those that wait for upstream, not for the disk
        self._gate_was_open = True
        self._something_happened = asyncio.Event()
        self._probe_out = False  # a parked lane's; one at a time
        self._kept_bytes = 0  # bodies read ahead, of batches that wait for their first attempt
        self._drain_until: float | None = None
        self._drained = asyncio.Event()

    # -- the life of it -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until cancelled, or until a drain has ended."""
        self._spool.subscribe(self._wake)
        for lane in self._spool.lanes():
            if not lane.paused:
                self._wake(lane.lane)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                sweep = tasks.create_task(self._sweeper.run(), name="forwarder-expiry")
                await self._serve()
                sweep.cancel()
        finally:
            self._tasks = None
            self._drained.set()
            self._leases.release_all()

    async def drain(self, seconds_max: float) -> None:
        """Deliver what can be within `seconds_max`, then stop; what is still under way then is given up as unknown."""
        self._drain_until = self._monotonic() + seconds_max
        self._something_happened.set()
        if self._tasks is not None:
            await self._drained.wait()

    def pause(self, lane: int) -> None:
        """Hold a lane by an operator's wish; batches under way are not recalled."""
        held = self._lanes.open(lane)
        held.paused = True
        self._lanes.put(held)

    def resume(self, lane: int) -> None:
        """Let a paused lane go on, and a parked one or one that backs off try at once."""
        held = self._lanes.open(lane)
        held.paused = False
        held.wait_until = 0.0
        held.may_have_more = True  # of a lane that it holds the spool tells nothing
        self._put(held)

    def key_changed(self) -> None:
        """The key for requests that carry none was replaced: lanes that wait for it try at once."""
        for lane in list(self._lanes):
            if lane.parked and not self._leases.key_of(lane.number):
                self.resume(lane.number)

    def is_held_back(self, lane: int) -> bool:
        """Tell whether the lane waits for its own sake, so that its share of the queue is bounded."""
        held = self._lanes.get(lane)
        return held is not None and held.state(self._monotonic()) != "active"

    def numbers(self) -> Numbers:
        """How it stands; cheap enough for every scrape."""
        lanes = {lane.number: lane for lane in self._lanes}
        return self._figures.numbers(self._monotonic(), self._gate, self._in_flight_max, lanes)

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    def _wake(self, number: int) -> None:
        lane = self._lanes.open(number)
        if not lane.may_have_more:
            lane.may_have_more = True
            self._put(lane)

    def _put(self, lane: Lane) -> None:
        self._lanes.put(lane)
        self._something_happened.set()

    async def _serve(self) -> None:
        while True:
            self._something_happened.clear()
            at = self._start_what_may()
            if self._drain_is_over(at):
                break
            await self._sleep(at)
        for task in self._posting:
            task.cancel()

    def _drain_is_over(self, next_at: float | None) -> bool:
        until = self._drain_until
        if until is None:
            return False
        nothing_more = next_at is None or next_at > until
        return self._monotonic() >= until or (nothing_more and not self._under_way)

    async def _sleep(self, until: float | None) -> None:
        if self._drain_until is not None:
            until = self._drain_until if until is None else min(until, self._drain_until)
        try:
            async with asyncio.timeout_at(until):
                await self._something_happened.wait()
        except TimeoutError:
            pass

    def _start_what_may(self) -> float | None:
        """Start every batch that may start now; give the time when the next one may, None if only an event can tell."""
        while True:
            now = self._monotonic()
            host_at = self._host.next_at(now)
            if host_at is None or not self._has_time_left(now):
                return None
            lanes_at = self._lanes.next_at(now, probes=not self._probe_out)
            if lanes_at is None or lanes_at > now:
                self._host.nothing_waits(now)
                return None if lanes_at is None else max(lanes_at, host_at)
            if host_at > now:
                return host_at
            lane = self._lanes.take(now, probes=not self._probe_out, spare=self._gate.has_spare)
            assert lane is not None, "the agenda named a time and has no lane for it"
            self._start(lane, now)
            self._lanes.put(lane)

    def _start(self, lane: Lane, now: float) -> None:
        """Give the lane its turn: it may turn out to have nothing to send yet."""
        key = self._leases.key_of(lane.number) or self._default_key()
        if not key:
            self._park_without_key(lane, now)
            return
        refs = self._gather(lane, now) if lane.fresh_first else []
        batch = None if refs else self._take_waiting(lane, now)
        refs = refs or (list(batch.refs) if batch is not None else self._gather(lane, now))
        if not refs:
            return
        lane.started(now, sum(ref.bytes for ref in refs))
        self._host.started(now, sum(ref.events for ref in refs))
        self._probe_out = self._probe_out or lane.parked
        assert self._tasks is not None, "only run() starts batches"
        deliver = self._deliver(lane, key, batch, refs, probe=lane.parked)
        task = self._tasks.create_task(deliver, name=f"batch-{refs[0].id}")
        self._under_way.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._something_happened.set()

    def _park_without_key(self, lane: Lane, now: float) -> None:
        if not lane.parked:
            self._journal.lane_parked(fingerprint(""), NO_KEY)
        lane.park(now + self._patience.park_probe_seconds, NO_KEY)

    def _take_waiting(self, lane: Lane, now: float) -> Batch | None:
        cautious = lane.parked or self._gate.cautious
        batch = lane.waiting.take_smallest(now) if cautious else lane.waiting.take(now)
        if batch is None:
            return None
        if batch.chunks is not None:
            self._kept_bytes -= batch.stored_bytes
        return self._carve(lane, batch) if cautious else batch

    def _carve(self, lane: Lane, batch: Batch) -> Batch:
        """Give what a probe risks of it; the rest waits on."""
        probe, rest = carve_smallest(batch)
        if rest is not None:
            lane.waiting.add(rest)
        return probe

    def _gather(self, lane: Lane, now: float) -> list[Ref]:
        """Lease towards a full batch; give it out when it is full, or when the lane has waited long enough."""
        bounds = self._host.size.bounds(now)
        while lane.may_have_more:
            room = Bounds(bounds.events_max - lane.gathered_events, bounds.bytes_max - lane.gathered_bytes)
            if room.events_max <= 0 or room.bytes_max <= 0:
                return lane.take_gathered()
            refs = self._leases.lease(lane.number, room)
            lane.may_have_more = bool(refs)
            too_many = (
                sum(ref.events for ref in refs) > room.events_max or sum(ref.bytes for ref in refs) > room.bytes_max
            )
            full = lane.take_gathered() if too_many else []
            lane.gather(refs)
            if full:
                return full
        return lane.take_gathered() if now >= lane.last_started_at + COALESCE_SECONDS else []

    def _has_time_left(self, now: float) -> bool:
        if self._drain_until is None:
            return True
        needed = max(DRAIN_ATTEMPT_SECONDS_MIN, 2 * self._figures.slowest_success_seconds())
        return self._drain_until - now >= min(needed, self._upstream.timeout_seconds)

    # -- one batch under way ------------------------------------------------------------------------------------------

    async def _deliver(self, lane: Lane, key: str, batch: Batch | None, refs: list[Ref], *, probe: bool) -> None:
        """Carry one batch up and settle it; `batch` is None where its chunks have yet to be composed."""
        try:
            try:
                batch = await self._load(lane, key, batch, refs, probe=probe)
                self._correct_charges(lane, batch, refs)
                trip = await self._attempt(lane, key, batch) if batch is not None else None
            finally:
                self._gate.ended()
            if batch is None or trip is None:
                self._gate.withdrawn()
                return
            await self._settler.settle(lane, key, batch, trip.outcome)
            self._note_gate()
        finally:
            lane.in_flight -= 1
            self._probe_out = self._probe_out and not probe
            self._put(lane)

    def _correct_charges(self, lane: Lane, batch: Batch | None, refs: list[Ref]) -> None:
        """Charge what is really sent: what was leased may have become several batches, and its text is longer."""
        sent_bytes = body_bytes(batch.chunks) if batch is not None and batch.chunks else 0
        sent_events = batch.events if batch is not None else 0
        lane.sent_bytes += sent_bytes - sum(ref.bytes for ref in refs)
        self._host.ceiling.refund(sum(ref.events for ref in refs) - sent_events)

    async def _load(self, lane: Lane, key: str, batch: Batch | None, refs: list[Ref], *, probe: bool) -> Batch | None:
        """Give the batch with its bodies; None where nothing of it is left, or the disk would not."""
        old, fresh = split_old(refs, self._sweeper.cut_off_ms(lane))
        if old:
            expired = Batch(refs=tuple(old)) if batch is None else batch.part(old)
            await self._settler.bury(lane, fingerprint(key), expired, expired_epitaph(expired))
            batch, refs = batch.part(fresh) if batch is not None and fresh else None, fresh
        if not refs or (batch is not None and batch.chunks is not None):
            return batch
        try:
            pairs = await self._leases.read(refs)
        except SpoolError as error:
            if batch is None:
                self._leases.release(refs)
                lane.may_have_more = True
            self._settler.unread(lane, fingerprint(key), batch, error)
            return None
        if not pairs:
            return None
        if batch is None:
            return self._compose(lane, pairs, cautious=probe or self._gate.cautious)
        batch.refs = tuple(ref for ref, _ in pairs)
        batch.chunks = tuple(chunk for _, chunk in pairs)
        return batch

    def _compose(self, lane: Lane, pairs: list[tuple[Ref, Chunk]], *, cautious: bool) -> Batch:
        """Make batches of what was read; the first goes now, the others wait their turn."""
        first, *others = plan(pairs, self._host.size.bounds(self._monotonic()))
        for batch in (first, *others):
            batch.host_score = (self._gate.successes, self._gate.failures)
        if cautious and len(first.refs) > 1:
            chunks = {chunk.id: chunk for _, chunk in pairs}
            first = self._carve(lane, first)
            first.chunks = tuple(chunks[ref.id] for ref in first.refs)
        for other in others:
            self._keep_body(other)
            lane.waiting.add(other)
        if others:
            self._put(lane)
        return first

    def _keep_body(self, batch: Batch) -> None:
        """Keep what was read ahead, up to one batch's worth over all lanes; the rest is read again."""
        if self._kept_bytes + batch.stored_bytes > self._batch_bytes_max:
            batch.chunks = None
        else:
            self._kept_bytes += batch.stored_bytes

    async def _attempt(self, lane: Lane, key: str, batch: Batch) -> Trip | None:
        task = asyncio.current_task()
        assert task is not None
        began, attempts = self._monotonic(), batch.attempts
        seconds_max = self._upstream.timeout_seconds
        if self._drain_until is not None:
            seconds_max = min(seconds_max, self._drain_until - began)
        if seconds_max <= 0:  # told to stop between its start and now
            self._settler.rest(lane, batch, 0.0)
            return None
        self._posting.add(task)
        try:
            trip = await self._courier.carry(key, batch, seconds_max=seconds_max)
        except ChunkCorrupt:
            await self._bury_corrupt(lane, key, batch)
            return None
        except asyncio.CancelledError:
            if batch.attempts > attempts:
                self._observer.attempt_ended("ambiguous", batch.events, 0, self._monotonic() - began)
            raise
        finally:
            self._posting.discard(task)
        self._count(key, batch, trip)
        return trip

    def _count(self, key: str, batch: Batch, trip: Trip) -> None:
        events, wall = batch.events, self._wall()
        if trip.raced:
            self._observer.attempt_ended("ambiguous", events, trip.bytes, 0.0)
        self._observer.attempt_ended(trip.outcome.label, events, trip.bytes, trip.seconds)
        self._figures.attempt_ended(wall, key, batch, trip)
        if trip.outcome.verdict is Verdict.DELIVERED:
            delays = [(max(0.0, wall - ref.accepted_at_ms / 1000), ref.events) for ref in batch.refs]
            self._observer.batch_delivered(events, delays)

    async def _bury_corrupt(self, lane: Lane, key: str, batch: Batch) -> None:
        """Set aside the chunks that do not inflate; the others go on without them."""
        bad = [ref for ref, chunk in zip(batch.refs, batch.chunks or (), strict=True) if not _inflates(chunk)]
        good = [ref for ref in batch.refs if ref not in bad]
        if good:
            self._settler.rest(lane, batch.part(good), 0.0)
        if bad:
            epitaph = Epitaph("corrupt", "the chunk does not inflate to what was stored")
            await self._settler.bury(lane, fingerprint(key), batch.part(bad), epitaph)

    def _note_gate(self) -> None:
        is_open = self._gate.is_open
        if is_open and not self._gate_was_open:
            self._host.cadence.mended(self._monotonic())
            self._journal.gate_opened()
        elif self._gate_was_open and not is_open:
            self._host.cadence.broke(self._monotonic())
            self._journal.gate_closed(self._gate.reason, self._gate.backoff_seconds)
        self._gate_was_open = is_open


def _inflates(chunk: Chunk) -> bool:
    try:
        chunk.text()
    except ChunkCorrupt:
        return False
    return True
