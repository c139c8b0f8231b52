"""The front door's life: opened first, closed last."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from relay.listener.connection import Connection, Server
from relay.listener.crowd import Crowd
from relay.listener.express import ExpressConnection
from relay.listener.process import prepare
from relay.listener.sockets import Sockets, name_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from relay.listener.door import Door
    from relay.listener.sockets import Endpoint

BACKLOG: Final = 1024
CONNECTIONS_MAX: Final = 1024
LAST_ANSWERS_SECONDS: Final = 1.0
"""For the answers to bodies that came too late."""
FORCED_SECONDS: Final = 0.1
"""Then aiohttp cuts off who is left; 0 would let it wait without a bound."""


class Listener:
    """All listening sockets of the front door and the connections that came through them."""

    def __init__(self, door: Door, *, connections_max: int = CONNECTIONS_MAX, short_way: bool = True) -> None:
        """Without `short_way` every request takes the general one."""
        self._door = door
        self._crowd = Crowd(connections_max)
        server = Server(door, self._crowd, ExpressConnection if short_way else Connection)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=FORCED_SECONDS)
        self._sockets = Sockets()
        self._open = False

    async def open(self, endpoints: Sequence[Endpoint], inherited: Sequence[socket.socket] = ()) -> list[str]:
        """Listen, on sockets a supervisor holds open where it gave some, else on the endpoints; gives their names.

        Raises RelayError where an address cannot be had. An IPv6 address is passed over on a machine without IPv6.
        """
        self._crowd.connections_max = prepare(self._crowd.connections_max)
        self._open = True
        if inherited:
            self._sockets.bound = list(inherited)
        else:
            await asyncio.to_thread(self._sockets.bind, endpoints)
        await self._runner.setup()
        for bound in self._sockets.bound:
            await web.SockSite(self._runner, bound, backlog=BACKLOG).start()
        self._crowd.watch()
        return [name_of(bound) for bound in self._sockets.bound]

    def drain(self) -> None:
        """Keep accepting, but ask every client to close its connection after the answer."""
        self._door.closing = True

    async def close(self, seconds_max: float) -> None:
        """Stop accepting, let those in hand be answered within `seconds_max`, close. May be called again."""
        if not self._open:
            return
        self._open = False
        self.drain()
        for site in list(self._runner.sites):
            await site.stop()
        await self._crowd.leave(seconds_max)
        self._door.hurry()
        await self._crowd.leave(LAST_ANSWERS_SECONDS)
        self._crowd.unwatch()
        await self._runner.cleanup()
        await asyncio.to_thread(self._sockets.close)
