"""All open connections: how many there may be, who goes first when there are too many, who has overstayed."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import structlog

from relay.logs import OnceAMinute

if TYPE_CHECKING:
    from relay.listener.connection import Connection, TurnedAway

EXPIRY_SECONDS: Final = 1.0
"""Between two looks for connections that have overstayed."""
WAITING_SECONDS_MIN: Final = 1.0
"""A connection that has waited for less is about to send, and is not closed to make room."""
LOOK_SECONDS_MIN: Final = 0.05
"""Between two looks for one that can go: with a thousand of them a look takes half a millisecond."""
LINGERING_MAX: Final = 128
"""Connections too many that are answered with care; beyond it they are answered and closed at once."""

_log = structlog.get_logger()


class Crowd:
    """Counts connections and makes room for new ones: who has waited longest for a request goes first."""

    def __init__(self, connections_max: int) -> None:
        self.connections_max = connections_max
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._members: WeakSet[Connection] = WeakSet()  # weak: a connection that never came to life ends nowhere
        self._lingering: set[TurnedAway] = set()
        self._waiting: list[tuple[float, Connection]] = []
        self._look_from = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._repeats = OnceAMinute()

    def __len__(self) -> int:
        return len(self._members)

    # -- who comes ----------------------------------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Tell whether one more may come; where it is full, close the one that has waited longest for a request."""
        if len(self._members) < self.connections_max:
            return True
        longest = self._find_waiting()
        self._repeats.say(
            _log.warning,
            "connections_full",
            connections_max=self.connections_max,
            closed_an_idle_one=longest is not None,
        )
        if longest is None:
            return False
        self._members.discard(longest)
        longest.force_close()
        return True

    def add(self, connection: Connection) -> None:
        """Count one in."""
        self._members.add(connection)

    def remove(self, connection: Connection) -> None:
        """Count one out."""
        self._members.discard(connection)

    def linger(self, stranger: TurnedAway) -> bool:
        """Keep one that is turned away until it has read its answer; False where there are too many of those too."""
        if len(self._lingering) >= LINGERING_MAX:
            return False
        self._lingering.add(stranger)
        return True

    def forget(self, stranger: TurnedAway) -> None:
        """Keep it no longer."""
        self._lingering.discard(stranger)

    def _find_waiting(self) -> Connection | None:
        """Find who has waited longest, in constant time on average: one look serves many newcomers."""
        now = self.now()
        if not self._waiting and now >= self._look_from:
            self._look_from = now + LOOK_SECONDS_MIN
            waiting = [(since, one) for one in self._members if (since := one.waiting_since()) is not None]
            self._waiting = sorted((pair for pair in waiting if now - pair[0] >= WAITING_SECONDS_MIN), key=_SINCE)
            self._waiting.reverse()
        while self._waiting:
            since, longest = self._waiting.pop()
            if longest in self._members and longest.waiting_since() == since:
                return longest
        return None

    # -- who stays too long -------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Close, from now on and once a second, what has overstayed."""
        self._timer = self._loop.call_later(EXPIRY_SECONDS, self._expire)

    def unwatch(self) -> None:
        """Stop that."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._waiting.clear()
        now = self.now()
        for connection in list(self._members):
            connection.expire(now)
        self.watch()

    def close_waiting(self) -> None:
        """Close every connection that has no request in hand."""
        for connection in list(self._members):
            if connection.waiting_since() is not None:
                connection.force_close()

    async def leave(self, seconds_max: float) -> None:
        """Wait until nobody is left, closing who waits for a request, at most so long."""
        until = self.now() + seconds_max
        while self._members and self.now() < until:
            self.close_waiting()
            await asyncio.sleep(min(0.02, max(0.0, until - self.now())))


_SINCE: Final = itemgetter(0)
