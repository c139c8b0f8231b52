"""One client's connection: aiohttp's protocol, with a bound on all that it leaves open. The only file that knows it.

                 first byte            whole head             answered
    waiting ──────────────► in a head ───────────► busy ──────────────────► waiting
       │                        │                    │
       │ keep-alive time-out,   │ HEAD_SECONDS_MAX   │ the door's own bounds; an answer that is not read:
       │ or room is needed      │ HEAD_BYTES_MAX     │ ANSWER_UNREAD_SECONDS_MAX
       ▼                        ▼                    ▼
     closed                 408 or 400            closed

Of aiohttp's private names it uses `_waiter` and `_messages`; the tests hold aiohttp to what they mean here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from relay.errors import BodyTooSlow, ConnectionsFull, InvalidRequest, Refusal

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader

    from relay.listener.crowd import Crowd
    from relay.listener.door import Door

HEAD_SECONDS_MAX: Final = 10.0
"""From the first byte of a request's head to its last: clients send it at once, only an attack takes longer."""
HEAD_BYTES_MAX: Final = 64 * 1024
"""Of a request's head."""
HEADER_BYTES_MAX: Final = 16 * 1024
"""Of one line of it."""
ANSWER_UNREAD_SECONDS_MAX: Final = 10.0
"""A client that reads no answers for so long is cut off."""
CHUNKS_OVERHEAD_BYTES_MAX: Final = 64 * 1024
"""What a body may take on the wire beyond twice its bytes: one-byte chunks cost the loop half a second a megabyte."""
KEEP_ALIVE_SECONDS: Final = 75.0
"""An idle connection is closed after so long."""
LINGER_SECONDS: Final = 2.0
"""What a refused client still sends is read this long, so that it sees the answer before a reset."""


class Connection(web.RequestHandler):
    """Knows since when it has been waiting for what, so that the crowd can close it in time."""

    __slots__ = (
        "__weakref__",
        "_body_bytes",
        "_crowd",
        "_door",
        "_head_bytes",
        "_request",
        "head_since",
        "idle_since",
        "stuck_since",
    )

    def __init__(self, server: Server, door: Door, crowd: Crowd, **settings: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **settings)
        self._door = door
        self._crowd = crowd
        self._request: web.BaseRequest | None = None
        self._head_bytes = self._body_bytes = 0
        self.idle_since = crowd.now()
        """When its last answer was given, or it was opened."""
        self.head_since: float | None = None
        """When the head began that is not complete; None where there is none."""
        self.stuck_since: float | None = None
        """Since when answers cannot be written because the client does not read; None where it does."""

    def waiting_since(self) -> float | None:
        """Since when it has been waiting for a head or the rest of one; None while a request is in hand."""
        if self._waiter is None or self._waiter.done():
            return None
        return self.idle_since if self.head_since is None else self.head_since

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and see whether the client keeps to the bounds."""
        if self._waiter is not None and self.head_since is None and data:
            self.head_since = self._crowd.now()
        super().data_received(data)
        if self._request is not None:
            self._check_body(self._request, len(data))
        elif self.head_since is not None and self.waiting_since() is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.turn_away(InvalidRequest(f"the head of a request has over {HEAD_BYTES_MAX} bytes"))

    def _check_body(self, request: web.BaseRequest, size: int) -> None:
        """Cut a body short that cannot end well: its reader then hears of it, from aiohttp it would not."""
        content = request.content
        if content.is_eof():
            return
        self._body_bytes += size
        overhead = self._body_bytes - 2 * content.total_bytes
        if self._messages or overhead > CHUNKS_OVERHEAD_BYTES_MAX:  # what follows was read as a message of its own
            content.set_exception(web.RequestPayloadError("its chunks are malformed, or so small that they only cost"))

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes either, aiohttp returns nothing
        """Let a client that has sent all it will (RFC 9112 §9.6) still read its answer."""
        if self._request is None or not self._request.content.is_eof():
            return False
        self.close()
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._crowd.remove(self)
        self._request = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note since when the client has not been reading."""
        super().pause_writing()
        self.stuck_since = self._crowd.now()

    def resume_writing(self) -> None:
        """Note that it reads again."""
        super().resume_writing()
        self.stuck_since = None

    def begin_request(self, request: web.BaseRequest) -> None:
        """Note that a head is complete and its request in hand."""
        self._request = request
        self.head_since = None
        self._head_bytes = self._body_bytes = 0

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:  # noqa: ARG002 – aiohttp's signature
        """Note that a request is answered, which aiohttp tells here; nothing is logged."""
        self._request = None
        self.idle_since = self._crowd.now()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refuses in the shape of all our refusals."""
        del request, status, exc, message  # they quote what was sent
        return self._door.refuse_malformed()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Say what went wrong in aiohttp, but not that the rest of a body is malformed: its client was told."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def expire(self, now: float) -> None:
        """Close it where it has overstayed."""
        if (
            self.head_since is not None
            and now - self.head_since > HEAD_SECONDS_MAX
            and self.waiting_since() is not None
        ):
            self.turn_away(BodyTooSlow(f"the head of a request took longer than {HEAD_SECONDS_MAX:g} s"))
        elif self.stuck_since is not None and now - self.stuck_since > ANSWER_UNREAD_SECONDS_MAX:
            self.abort()

    def turn_away(self, refusal: Refusal) -> None:
        """Refuse what is not a whole request yet, and close."""
        if self.transport is not None:
            self.transport.write(self._door.refuse_unread(refusal))
        self.force_close()

    def abort(self) -> None:
        """Close at once, without waiting for what was not written yet."""
        if self.transport is not None:
            self.transport.abort()


class TurnedAway(asyncio.Protocol):
    """A connection too many: its first bytes are answered 503, the rest is read and forgotten for a short while."""

    def __init__(self, door: Door, crowd: Crowd) -> None:
        self._door = door
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request, for an answer that comes before it confuses some clients; but not for long."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._crowd.linger(self):
            self._answer()
            self._transport.close()
            return
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer once; closing now would reset the connection before the client has read that."""
        if data and not self._answered:
            self._answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        del exc
        if self._timer is not None:
            self._timer.cancel()
        self._crowd.forget(self)

    def _answer(self) -> None:
        assert self._transport is not None
        self._answered = True
        refusal = ConnectionsFull("too many connections are open (listen.connections_max); try again in a moment")
        self._transport.write(self._door.refuse_unread(refusal))
        if self._transport.can_write_eof():
            self._transport.write_eof()


class Server(web.Server):
    """Makes a Connection of each client that comes, as long as there is room."""

    def __init__(self, door: Door, crowd: Crowd, connection: type[Connection] | None = None) -> None:
        """`connection` is the class of those that are taken in, for a kind with a shorter way."""
        super().__init__(
            door.handle,
            request_factory=self._begin_request,
            handler_cancellation=False,  # a client that hangs up takes nothing back
        )
        self._door = door
        self._crowd = crowd
        self._connection = connection or Connection

    def __call__(self) -> web.RequestHandler:
        """Take a client in; one too many gets a protocol that only turns it away."""
        if not self._crowd.make_room():
            return cast("web.RequestHandler", TurnedAway(self._door, self._crowd))
        connection = self._connection(
            self,
            self._door,
            self._crowd,
            auto_decompress=False,  # its own cap is 1 MiB, answered by 413
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        self._crowd.add(connection)
        return connection

    def _begin_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        request = web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())
        cast("Connection", protocol).begin_request(request)
        return request
