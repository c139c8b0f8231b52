"""Brings what the writer has made durable into memory: lanes, books, index and recent rows; on the event loop.

Nothing is counted before it is on the disk, so that memory never promises what a power cut would take back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.spool.store import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.spool import Ref
    from relay.spool.books import Books
    from relay.spool.index import Lanes
    from relay.spool.paging import Pager
    from relay.spool.recent import Recent
    from relay.spool.store import Row
    from relay.spool.writer import Done, Found, Job


class Mirror:
    """Applies outcomes, in the order in which they were committed."""

    def __init__(
        self, lanes: Lanes, books: Books, recent: Recent, pager: Pager, *, tell: Callable[[int], None]
    ) -> None:
        """`tell` hears the number of each lane that has more to lease now."""
        self._lanes = lanes
        self._books = books
        self._recent = recent
        self._pager = pager
        self._tell = tell

    def apply(self, done: Done) -> set[int]:
        """Count a transaction in; gives the lanes that its appends brought more to lease, for the caller to tell."""
        born = {ref.id for _, refs in done.jobs for ref in refs}
        woken = {row.lane for row in done.rows if row.id not in born and self._take_in(row)}
        for ref in done.acks:
            self._lanes[ref.lane].settle(ref)
            self._books.acked += ref.events
        for job, refs in done.jobs:
            self._end_job(job, refs)
        return woken

    def add_found(self, found: Found) -> None:
        """Count rows in that a failed transaction has left after all."""
        for entry in found.entries:
            self._books.recovered += entry.events
            if self._pager.add(entry):
                self._tell(entry.lane)

    def _take_in(self, row: Row) -> bool:
        """Count a chunk that an append brought; True where it can be leased now."""
        self._books.enqueued += row.events
        if row.dead is not None:
            self._books.died(self._lanes[row.lane], row.dead.reason, events=row.events, size=len(row.data))
            self._pager.pass_by(row.id)
            return False
        self._recent.add(row.id, row.lane, row.data)
        return self._pager.add(Entry(row.id, row.lane, row.events, len(row.data), row.accepted_at_ms))

    def _end_job(self, job: Job, made: list[Ref]) -> None:
        for ref in job.settled:
            self._lanes[ref.lane].settle(ref)
        for ref, verdict in job.graves:
            self._lanes[ref.lane].settle(ref)
            self._recent.forget(ref.id)
            self._books.died(self._lanes[ref.lane], verdict.reason, events=ref.events, size=ref.bytes)
        for letter in job.revived:
            self._books.replayed(self._lanes[letter.lane], letter)
        for letter in job.dropped:
            self._books.dropped_dead(self._lanes[letter.lane], letter, job.drop_reason)
        if job.revived:
            self._queue(made)
        else:
            self._adopt(made)
        for lane, paused in job.paused:
            self._lanes[lane].paused = paused
            self._tell(lane)
        for lane, key in job.rekeyed:
            self._lanes.rekey(self._lanes[lane], key)
        if not job.future.done():
            job.future.set_result(made)

    def _adopt(self, parts: Sequence[Ref]) -> None:
        """Count in the parts of a chunk, which are born leased."""
        for ref in parts:
            self._lanes[ref.lane].adopt(ref)
            self._pager.pass_by(ref.id)

    def _queue(self, revived: Sequence[Ref]) -> None:
        """Count in dead letters that live again."""
        for ref in revived:
            self._pager.add(Entry(ref.id, ref.lane, ref.events, ref.bytes, ref.accepted_at_ms))
        for lane in {ref.lane for ref in revived}:
            self._tell(lane)
