"""What may become of dead letters: replayed or purged by an operator, evicted where they grow past their bound.

One at a time: a letter that one verb has chosen must not be another's before its transaction is on the disk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from relay.errors import SpoolError
from relay.spool.letters import Choice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.spool.letters import DeadLetter

LETTERS_PER_COMMIT: Final = 200
BYTES_PER_COMMIT: Final = 8 * 1024 * 1024
"""A replayed letter is written once more; appends wait no longer behind it than behind one another."""

_log = structlog.get_logger()


class Tally(msgspec.Struct, frozen=True):
    """How much something has dealt with."""

    chunks: int = 0
    events: int = 0

    def add(self, letters: list[DeadLetter]) -> Tally:
        """Count more in."""
        return Tally(self.chunks + len(letters), self.events + sum(letter.events for letter in letters))


class Graveyard:
    """The verbs on dead letters; `select` reads the next chosen ones, the others settle a batch of them on disk."""

    def __init__(
        self,
        *,
        select: Callable[[Choice, int, int, int], Awaitable[list[DeadLetter]]],
        last_id: Callable[[], int],
        revive: Callable[[list[DeadLetter]], Awaitable[object]],
        drop: Callable[[list[DeadLetter], str], Awaitable[object]],
        held_bytes: Callable[[], int],
        bytes_max: int,
    ) -> None:
        self._select = select
        self._last_id = last_id
        self._revive = revive
        self._drop = drop
        self._held_bytes = held_bytes
        self._bytes_max = bytes_max
        self._turn = asyncio.Lock()
        self._evicting: asyncio.Task[None] | None = None

    async def replay(self, choice: Choice, progress: Callable[[Tally], None]) -> Tally:
        """Queue the chosen letters anew, each in one transaction with its mark; corrupt ones stay, they cannot go."""
        # What is corrupt has no bytes to send: it would die again at once.
        return await self._each(msgspec.structs.replace(choice, not_reason="corrupt"), self._revive, progress)

    async def purge(self, choice: Choice, progress: Callable[[Tally], None]) -> Tally:
        """Drop the chosen letters for good."""

        async def drop(letters: list[DeadLetter]) -> None:
            await self._drop(letters, "purged")

        return await self._each(choice, drop, progress)

    def keep_within_bound(self) -> None:
        """Evict the oldest in the background where there are too many; cheap to call when there are not."""
        if self._held_bytes() > self._bytes_max and self._evicting is None:
            self._evicting = asyncio.get_running_loop().create_task(self._evict(), name="spool-evict")

    async def close(self) -> None:
        """Stop evicting; the next life goes on with it."""
        if self._evicting is not None:
            self._evicting.cancel()
            await asyncio.gather(self._evicting, return_exceptions=True)

    async def _each(
        self,
        choice: Choice,
        settle: Callable[[list[DeadLetter]], Awaitable[object]],
        progress: Callable[[Tally], None],
    ) -> Tally:
        done, after, upto = Tally(), 0, self._last_id()  # what dies meanwhile, replayed ones again, was not meant
        while True:
            async with self._turn:
                letters = _within(await self._select(choice, after, upto, LETTERS_PER_COMMIT), BYTES_PER_COMMIT)
                if not letters:
                    return done
                await settle(letters)
            after, done = letters[-1].id, done.add(letters)
            progress(done)

    async def _evict(self) -> None:
        gone = Tally()
        try:
            while (excess := self._held_bytes() - self._bytes_max) > 0:
                async with self._turn:
                    letters = await self._select(Choice(), 0, self._last_id(), LETTERS_PER_COMMIT)
                    oldest = _covering(letters, excess)
                    if not oldest:
                        break
                    await self._drop(oldest, "evicted")
                gone = gone.add(oldest)
        except SpoolError as exc:
            _log.warning("dead_letters_not_evicted", error=str(exc))
        finally:
            self._evicting = None
            if gone.events:
                _log.error(
                    "dead_letters_evicted",
                    events=gone.events,
                    why="queue.dead_letter_bytes_max is reached, the oldest went; replay, export or purge them in time",
                )


def _within(letters: list[DeadLetter], bytes_max: int) -> list[DeadLetter]:
    """The first of them that fit, one at least."""
    size = 0
    for at, letter in enumerate(letters):
        size += letter.bytes
        if at and size > bytes_max:
            return letters[:at]
    return letters


def _covering(letters: list[DeadLetter], excess: int) -> list[DeadLetter]:
    """The first of them that make up the excess."""
    for at, letter in enumerate(letters):
        excess -= letter.bytes
        if excess <= 0:
            return letters[: at + 1]
    return letters
