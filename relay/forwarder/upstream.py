"""One POST: bytes out, an Answer in; no opinions, no retries but one where a kept connection was closed under us.

Traps of aiohttp that this file is about: a malformed status line raises an error whose `.status` is 400, so only a
parsed response gives a status; a server that closes after each reply makes half of all POSTs on kept connections fail;
`trust_env`, cookies, redirects and inflating are on or half on by default.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from relay.forwarder.delivery import Answer, ConnectFailed, Malformed, Reset, Response, TimedOut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import SimpleNamespace

    from aiohttp.abc import AbstractStreamWriter

ANSWER_BYTES_MAX: Final = 4096
"""Statsig says yes in 17 bytes; the rest is for error pages, of which people see an excerpt."""
ANSWER_BODY_SECONDS_MAX: Final = 5.0
"""Once the status is there its body must follow; one that trickles may not hold a slot of the gate."""
RACE_SECONDS_MAX: Final = 1.0
"""A kept connection that ends sooner than this after we began to send was closing already; later, it is a failure."""
STALL_SECONDS_MAX: Final = 10.0
"""A peer that takes none of 64 KiB for this long will not take the rest; nothing is in doubt then."""
_PIECE_BYTES: Final = 1 << 16
"""The body goes out in pieces of this size, so that a time-out knows whether all of it had left."""
_LOOKS: Final = 2
"""Turns of the loop before a post, in which it sees which kept connections were closed meanwhile: the first turn polls
the sockets, the second acts on it. Against a server that closes after each reply, 100, 24 and 0 of 200 posts met a
closed connection with 0, 1 and 2 turns (asyncio, measured 2026-11)."""
_KEEPALIVE_SECONDS: Final = 15.0


class Attempt(msgspec.Struct, frozen=True):
    """What came of one POST."""

    answer: Answer
    raced: bool = False
    """A first try on a kept connection was cut after the whole body had left: upstream may have that one too."""


class Poster(Protocol):
    """What the forwarder needs of an upstream."""

    timeout_seconds: float

    async def post(self, body: bytes, headers: Mapping[str, str], *, seconds_max: float) -> Attempt:
        """Post once and say what came of it within `seconds_max`; raises nothing but on cancellation."""
        ...


class _Progress:
    """How far one request has come."""

    def __init__(self) -> None:
        self.connected = False
        self.reused = False
        self.sent = False

    def phase(self) -> str:
        return "waiting for the answer" if self.sent else "sending"


class _Body(aiohttp.Payload):
    """Bytes that tell when the last of them goes to the socket."""

    def __init__(self, data: bytes, progress: _Progress, stall_seconds_max: float) -> None:
        super().__init__(data)
        self._size = len(data)
        self._data = data
        self._progress = progress
        self._stall_seconds_max = stall_seconds_max

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Give the body as text: the base class asks for it, nobody here does."""
        return self._data.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Hand the body to the socket piece by piece; each must be taken within the stall bound.

        The last one need not: it may have arrived whenever it is given up, so it may take as long as the whole post.
        """
        data = memoryview(self._data)
        end = len(data) - _PIECE_BYTES
        at = 0
        while at < end:
            async with asyncio.timeout(self._stall_seconds_max):
                await writer.write(data[at : at + _PIECE_BYTES])
            at += _PIECE_BYTES
        self._progress.sent = True  # said before, not after: a closing transport still flushes what it was handed
        await writer.write(data[at:])


class Upstream:
    """A pool of connections to one URL. Open it on the loop it will be used on; close it after the last post."""

    def __init__(
        self,
        *,
        url: str,
        timeout_seconds: float,
        connect_seconds_max: float,
        proxy: str = "",
        ca_file: str = "",
        client_cert_file: str = "",
        client_key_file: str = "",
        stall_seconds_max: float = STALL_SECONDS_MAX,
        answer_body_seconds_max: float = ANSWER_BODY_SECONDS_MAX,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._url = url
        self._connect_seconds_max = connect_seconds_max
        self._stall_seconds_max = stall_seconds_max
        self._answer_body_seconds_max = answer_body_seconds_max
        self._proxy = proxy or None
        self._ca_file = ca_file
        self._client_cert_file = client_cert_file
        self._client_key_file = client_key_file
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Read the certificates and make the pools; raises OSError or ssl.SSLError where a file is no good."""
        context = await asyncio.to_thread(self._ssl_context)
        self._kept = self._session(context=context, keep=True)
        self._fresh = self._session(context=context, keep=False)

    async def close(self) -> None:
        """Close every connection."""
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()

    async def post(self, body: bytes, headers: Mapping[str, str], *, seconds_max: float) -> Attempt:
        """Post once and say what came of it within `seconds_max`; raises nothing but on cancellation."""
        assert self._kept is not None, "open the upstream first"
        assert self._fresh is not None, "open the upstream first"
        began = time.monotonic()
        for _ in range(_LOOKS):
            await asyncio.sleep(0)
        progress = _Progress()
        answer = await self._post(self._kept, body, headers, progress, seconds_max)
        spent = time.monotonic() - began
        if not (isinstance(answer, Reset) and progress.reused and spent < RACE_SECONDS_MAX):
            return Attempt(answer)
        raced = answer.sent
        answer = await self._post(self._fresh, body, headers, _Progress(), seconds_max - spent)
        return Attempt(answer, raced)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        body: bytes,
        headers: Mapping[str, str],
        progress: _Progress,
        seconds_max: float,
    ) -> Answer:
        connect = min(self._connect_seconds_max, seconds_max)
        try:
            async with (
                asyncio.timeout(seconds_max),
                session.post(
                    self._url,
                    data=_Body(body, progress, self._stall_seconds_max),
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._proxy,
                    timeout=aiohttp.ClientTimeout(total=None, connect=connect),
                    trace_request_ctx=progress,
                ) as response,
            ):
                return await _read(response, self._answer_body_seconds_max)
        except (TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as exc:
            return _translate(exc, progress)

    def _session(self, *, context: ssl.SSLContext | bool, keep: bool) -> aiohttp.ClientSession:
        # The gate bounds the requests, so the pool needs no limit of its own.
        connector = (
            aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=_KEEPALIVE_SECONDS)
            if keep
            else aiohttp.TCPConnector(limit=0, ssl=context, force_close=True)
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[_tracing()],
        )

    def _ssl_context(self) -> ssl.SSLContext | bool:
        if not (self._ca_file or self._client_cert_file):
            return True
        context = ssl.create_default_context(cafile=self._ca_file or None)
        if self._client_cert_file:
            context.load_cert_chain(self._client_cert_file, self._client_key_file or None)
        return context


def _tracing() -> aiohttp.TraceConfig:
    """Note in each request's progress that it has a connection, and whether that one was used before."""

    async def connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.connected = True

    async def reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.connected = context.trace_request_ctx.reused = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    tracing.on_connection_reuseconn.append(reused)
    return tracing


async def _read(response: aiohttp.ClientResponse, seconds_max: float) -> Response:
    """Take the status and the first bytes of the body; the connection is kept only if that was all of it."""
    content = response.content
    body, complete = bytearray(), False
    try:
        if content.is_eof():  # it came with the status, as nearly all do, and needs no timer
            body += content.read_nowait(ANSWER_BYTES_MAX + 1)
        else:
            async with asyncio.timeout(seconds_max):
                while len(body) <= ANSWER_BYTES_MAX and (piece := await content.read(ANSWER_BYTES_MAX + 1 - len(body))):
                    body += piece
        complete = content.at_eof()
    except (TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError):
        pass  # the status stands; that its body is cut short is said below
    if not complete:
        response.close()
    return Response(
        status=response.status,
        body=bytes(body[:ANSWER_BYTES_MAX]),
        complete=complete,
        retry_after=response.headers.get("Retry-After", ""),
        date=response.headers.get("Date", ""),
    )


def _translate(exc: Exception, progress: _Progress) -> Answer:
    """Turn what aiohttp raised into what happened."""
    if not progress.connected:
        return ConnectFailed(_why_not_connected(exc))
    match exc:
        case TimeoutError():
            return TimedOut(progress.sent, f"timed out while {progress.phase()}")
        case aiohttp.ClientResponseError() | HttpProcessingError() | aiohttp.ClientPayloadError():
            return Malformed(progress.sent, "the answer is not HTTP")
        case _:
            return Reset(progress.sent, f"connection lost while {progress.phase()}")


def _why_not_connected(exc: Exception) -> str:
    match exc:
        case aiohttp.ClientHttpProxyError():
            return f"the proxy refused with {exc.status}"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return f"TLS: {_system_text(exc)}"
        case aiohttp.ClientConnectorDNSError():
            return f"DNS: {_system_text(exc)}"
        case TimeoutError():
            return "no connection in time"
        case _:
            return _system_text(exc)


def _system_text(exc: Exception) -> str:
    """Say it as the system does, without the addresses and objects that aiohttp adds."""
    cause = getattr(exc, "os_error", None) or getattr(exc, "certificate_error", None) or exc
    if verify_message := getattr(cause, "verify_message", ""):
        return str(verify_message)
    if isinstance(cause, ConnectionError | TimeoutError) and cause.errno:
        return os.strerror(cause.errno)
    return str(getattr(cause, "strerror", None) or type(cause).__name__)
