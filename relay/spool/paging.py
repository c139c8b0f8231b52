"""Which chunks' entries are in memory, and which wait on disk until these are delivered.

    ids   1 ······· known_to ······· last_id          known_to: every live chunk up to it is in the lanes' arrays
          └ in memory ┘└ on disk, read in pages ┘     counted_to: of an earlier life's, all up to it are in the totals

While nothing waits on disk, new chunks go straight into memory; once the window is full they are only counted.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from relay.errors import SpoolError, StoreDamaged
from relay.spool.salvage import lost_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.spool.books import Books
    from relay.spool.index import Lane, Lanes
    from relay.spool.store import Entry

PAGE_ENTRIES: Final = 5_000
"""Read at once into the index: some 10 ms of work between other requests."""
TOTALS_SPAN: Final = 100_000
"""Ids summed up at once for what lies beyond the window in memory."""

_log = structlog.get_logger()


class Pager:
    """Fills the lanes' arrays. Belongs to the event loop; `entries` and `totals` read the disk."""

    def __init__(
        self,
        lanes: Lanes,
        books: Books,
        *,
        entries_max: int,
        entries: Callable[[int, int, int], Awaitable[list[Entry]]],
        totals: Callable[[int, int], Awaitable[list[tuple[int, int, int, int]]]],
        tell: Callable[[int], None],
        gave_up: Callable[[SpoolError], None],
    ) -> None:
        self._lanes = lanes
        self._books = books
        self._entries_max = entries_max
        self._entries = entries
        self._totals = totals
        self._tell = tell
        self._gave_up = gave_up
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._loaded = 0  # entries held in memory
        self._known_to = 0
        self._counted_to = 0
        self._recover_to = 0  # chunks up to this id are an earlier life's
        self.last_id = 0
        """The highest id that exists."""

    @property
    def recovering(self) -> bool:
        """An earlier life's chunks are not all counted yet."""
        return self._counted_to < self._recover_to

    def start(self, last_id: int) -> None:
        """Begin with what an earlier life left, up to this id."""
        self.last_id = self._recover_to = last_id

    def lane_of(self, number: int) -> Lane:
        """Give a chunk's lane; one that the file does not know has lost its key, and is held until it gets another."""
        if number not in self._lanes:
            _log.error("lane_key_lost", lane=number)
            self._lanes.recover(number, lost_key(number), paused=True)
        return self._lanes[number]

    def add(self, entry: Entry) -> bool:
        """Count a chunk in; True where its entry found room in memory."""
        lane = self.lane_of(entry.lane)
        lane.events += entry.events
        lane.bytes += entry.bytes
        if self._known_to != self.last_id or self._loaded >= self._entries_max:
            self.last_id = entry.id
            return False
        lane.push(entry)
        self._loaded += 1
        self.pass_by(entry.id)
        return True

    def pass_by(self, chunk: int) -> None:
        """Note that a chunk exists which the index need not hold, or holds by now."""
        if self._known_to == self.last_id:
            self._known_to = chunk
        self.last_id = chunk

    def leased(self, chunks: int, *, dry: bool) -> None:
        """Note that so many entries were taken; `dry` where the lane has no more of them in memory."""
        self._loaded -= chunks
        if self._loaded < self._entries_max // 2 or dry:
            self.page_in()  # also when others fill the window: a parked lane must not hide what lies behind it

    def released(self, chunks: int) -> None:
        """Note that so many entries are back."""
        self._loaded += chunks

    def page_in(self) -> None:
        """Read on in the background, if there is anything to read."""
        if self._task is None and self._known_to < self.last_id and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._load(), name="spool-index")
            self._task.add_done_callback(self._paged_in)

    async def wait(self) -> None:
        """Return when nothing is being read."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Stop after the page under way."""
        self._closed = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _paged_in(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreDamaged):
            return  # the writer salvages it, and has us read on
        if error is not None:
            self._gave_up(error if isinstance(error, SpoolError) else SpoolError(f"the index cannot be read: {error}"))

    async def _load(self) -> None:
        """Fill the window in memory from the disk, then count what lies beyond it."""
        while self._known_to < self.last_id and not self._closed:
            await self._load_page()
            if self._loaded >= self._entries_max:
                break
        while self.recovering and not self._closed:
            await self._count_page()

    async def _load_page(self) -> None:
        after, upto = self._known_to, self.last_id
        limit = min(PAGE_ENTRIES, self._entries_max)
        entries = await self._entries(after, upto, limit)
        self._known_to = entries[-1].id if len(entries) == limit else upto
        for entry in entries:
            lane = self.lane_of(entry.lane)
            lane.push(entry)
            if self._counted_to < entry.id <= self._recover_to:
                lane.events += entry.events
                lane.bytes += entry.bytes
                self._books.recovered += entry.events
        self._loaded += len(entries)
        self._counted_to = max(self._counted_to, min(self._known_to, self._recover_to))
        for number in {entry.lane for entry in entries}:
            self._tell(number)

    async def _count_page(self) -> None:
        after = self._counted_to
        upto = min(after + TOTALS_SPAN, self._recover_to)
        for number, _, events, size in await self._totals(after, upto):
            lane = self.lane_of(number)
            lane.events += events
            lane.bytes += size
            self._books.recovered += events
        self._counted_to = upto
