"""An upstream on a real socket that plays one fault after another, byte by byte, and remembers what it has taken."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

YES_BODY = b'{"success": true}'
BOMB = gzip.compress(b'{"success": true}' + b" " * 50_000_000)

Fault = str | int
"""A status, or one of the names below."""

TAKES: frozenset[Fault] = frozenset(
    {"hang", "reset_after", "malformed", "cut_head", "cut_body", "trickle", "close_quietly"}
)
"""Faults in which it has taken the events, though the sender cannot know."""
RESETS: frozenset[Fault] = frozenset({"reset_at_once", "reset_before", "reset_during"})
"""Faults in which it takes nothing, though the sender cannot know: a small body has left before its reset comes."""
REFUSES: tuple[Fault, ...] = (
    *sorted(RESETS, key=str), "html", "no", "bomb", "redirect", "huge",
    302, 401, 403, 404, 405, 408, 410, 425, 429, 431, 500, 502, 503, 504,
)  # fmt: skip
"""Faults in which it takes nothing."""


def answer(status: int, body: bytes = b"", *, headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status} Whatever\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


ANSWERS: dict[str, bytes] = {
    "yes": answer(202, YES_BODY),
    "close": answer(202, YES_BODY),  # says nothing of it, closes all the same
    "close_quietly": b"",
    "malformed": b"HTP/1.1 2OO OK\r\n\r\n",
    "cut_head": b"HTTP/1.1 202 Acc",
    "cut_body": answer(202, YES_BODY[:6], length=len(YES_BODY)),
    "html": answer(200, b"<html>Welcome to the airport</html>"),
    "no": answer(202, b'{"success": false}'),
    "bomb": answer(200, BOMB, headers="Content-Encoding: gzip\r\n"),
    "huge": answer(200, b"[" + b"1," * 500_000 + b"1]"),
}
ENDS: frozenset[Fault] = frozenset({"close", "close_quietly", "reset_after", "malformed", "cut_head", "cut_body"})
"""After these the connection is closed."""


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ScriptedUpstream:
    """`script(number of the request)` says what to do with it: "yes", a status, or a fault."""

    def __init__(
        self,
        script: Callable[[int], Fault] = lambda _: "yes",
        *,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.script = script
        self._port = port
        self.tls = tls
        self.requests = 0
        self.connections = 0
        self.played: Counter[Fault] = Counter()
        self.taken: Counter[str] = Counter()
        self.taken_at: dict[str, float] = {}
        """By the loop's clock."""
        self.refused_keys: dict[str, Fault] = {}
        """What requests under these keys get, whatever the script says."""
        self.in_doubt = 0
        """Events of requests, repeats and all, after which the sender cannot know whether they were taken."""
        self.taken_in_doubt = 0
        """Those of them that were."""
        self.headers: list[dict[str, str]] = []
        self.elsewhere = 0
        """Requests to where the redirects point."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, ssl=self.tls)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        if self._server is None:
            return self._port
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1/log_event"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Play one request; False where the connection ends with it."""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
        self.elsewhere += "elsewhere" in line
        fault = self.refused_keys.get(headers.get("statsig-api-key", "")) or self.script(self.requests)
        self.requests += 1
        self.played[fault] += 1
        length, events = int(headers["content-length"]), int(headers["statsig-event-count"])
        self.in_doubt += events * (fault in RESETS | TAKES)
        self.taken_in_doubt += events * (fault in TAKES)
        if fault == "reset_at_once":
            reset(writer)
            return False
        if fault == "early_413":
            writer.write(answer(413, b"too big", headers="Connection: close\r\n"))
            await writer.drain()
            return False
        if fault in ("reset_before", "reset_during"):
            await reader.readexactly(length // 2 if fault == "reset_during" else 0)
            reset(writer)
            return False
        if fault == "stall":
            await asyncio.sleep(3600)
        body = await reader.readexactly(length)
        self.headers.append(headers)
        if fault in ("yes", "close", *TAKES):
            self._take(body, headers)
        return await self._answer(fault, writer)

    def _take(self, body: bytes, headers: dict[str, str]) -> None:
        text = zlib.decompress(body, 31) if headers.get("content-encoding") == "gzip" else body
        events = json.loads(text)["events"]
        assert len(events) == int(headers["statsig-event-count"])
        names = [event["eventName"] for event in events]
        self.taken.update(names)
        self.taken_at |= dict.fromkeys(names, asyncio.get_running_loop().time())

    async def _answer(self, fault: Fault, writer: asyncio.StreamWriter) -> bool:
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "trickle":
            await self._trickle(writer)
        elif fault == "slow_body":
            writer.write(answer(202, YES_BODY[:6], length=len(YES_BODY)))
            await asyncio.sleep(3600)
        elif fault == "reset_after":
            reset(writer)
        else:
            writer.write(self._bytes(fault))
            await writer.drain()
        return fault not in ENDS

    def _bytes(self, fault: Fault) -> bytes:
        if fault == "redirect":
            return answer(307, headers=f"Location: http://127.0.0.1:{self.port}/elsewhere\r\n")
        if fault in (204, 304):
            return f"HTTP/1.1 {fault} Whatever\r\n\r\n".encode()
        return answer(fault, b'{"error": "scripted"}') if isinstance(fault, int) else ANSWERS[fault]

    async def _trickle(self, writer: asyncio.StreamWriter) -> None:
        for byte in answer(202, YES_BODY):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
