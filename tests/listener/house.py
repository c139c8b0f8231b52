"""The front door in process: a real listener on loopback over a real spool, and clients on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spool.disk import NOW_MS, SpoolOnDisk, check_books, take_all

from relay import wire
from relay.config.values import Address
from relay.listener import Door, Listener
from relay.listener.door import Limits
from relay.observe import Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from relay.spool.spool import DiskSpool

PATHS = ("/v1/log_event", "/v1/rgstr")
LIMITS: Mapping[str, float] = {
    "request_bytes_max": 16 << 20,
    "inflated_bytes_max": 64 << 20,
    "event_bytes_max": 10 << 20,
    "events_per_request_max": 20_000,
    "envelope_bytes_max": 256 << 10,
    "memory_bytes_max": 96 << 20,
    "body_seconds_max": 30.0,
    "answer_seconds_max": 5.0,
    "chunk_events_max": 1000,
    "chunk_bytes_max": 512 << 10,
}
EVENT = b'{"eventName":"a","time":1790000000000}'
BODY = b'{"events":[' + EVENT + b"]}"
CHUNKED: Mapping[str, str] = {"Transfer-Encoding": "chunked"}


@dataclass(frozen=True)
class Answer:
    """One answer, as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found

    def refusal(self) -> tuple[str, str]:
        """Check the shape all refusals have; give code and message."""
        assert self.headers["content-type"].startswith("application/json"), self
        assert self.json["success"] is False
        assert set(self.json) == {"success", "error"}, self
        error = self.json["error"]
        assert isinstance(error, dict)
        assert set(error) == {"code", "message"}
        return error["code"], error["message"]


class Client:
    """A connection that sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_head(self, seconds: float = 8.0) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in fields}

    async def read(self, *, head_only: bool = False, seconds: float = 8.0) -> Answer:
        """Read one answer; `head_only` where the request was HEAD."""
        status, headers = await self.read_head(seconds)
        size = 0 if head_only or status in {100, 204} else int(headers["content-length"])
        async with asyncio.timeout(seconds):
            return Answer(status, headers, await self.reader.readexactly(size))

    async def closed(self, seconds: float = 8.0) -> bool:
        """Tell whether the other side closes without a further byte."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def hang_up(self) -> None:
        """Close."""
        self.writer.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.writer.transport.abort()


class House:
    """One open front door."""

    def __init__(self, door: Door, listener: Listener, spool: DiskSpool, observer: Observer, names: list[str]) -> None:
        self.door = door
        self.listener = listener
        self.spool = spool
        self.observer = observer
        self.names = names

    @property
    def port(self) -> int:
        return int(self.names[0].rpartition(":")[2])

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            client.hang_up()

    async def exchange(self, data: bytes, *, head_only: bool = False, seconds: float = 8.0) -> Answer:
        """Send bytes on a connection of their own, and read one answer."""
        async with self.client() as client:
            await client.send(data)
            return await client.read(head_only=head_only, seconds=seconds)

    async def post(self, body: bytes = BODY, **given: object) -> Answer:
        return await self.exchange(post(body, **given))  # type: ignore[arg-type]

    async def stored(self) -> list[bytes]:
        """Every usable event in the spool, each by its bytes; they are gone from it then."""
        return [event for text in await take_all(self.spool) for event in wire.split_events(text)]

    def answered(self) -> Counter[int]:
        """How many answers of each status were counted."""
        return Counter({code: times for code, times in self.observer.answers.items() if times})

    def refused(self) -> dict[str, int]:
        """How many events were counted as refused, by reason."""
        return {reason: events for reason, events in self.observer.refused_events.items() if events}

    def untouched(self) -> bool:
        """Whether the spool has never taken anything."""
        stats = self.spool.stats()
        return stats.enqueued_events == stats.events == stats.dead_events == 0

    def at_rest(self) -> bool:
        """Whether nothing is held any more for any request."""
        return not (self.door._memory.held_bytes or self.observer.in_flight_requests or self.door._reading)


def post(
    body: bytes = BODY,
    *,
    path: str = "/v1/log_event",
    headers: Mapping[str, str] | None = None,
    key: str | None = "secret-a",
    length: int | None = -1,
) -> bytes:
    """Write a POST; `length` None leaves Content-Length out."""
    fields = {"Host": "relay"}
    if key is not None:
        fields["statsig-api-key"] = key
    if length is not None:
        fields["Content-Length"] = str(len(body) if length < 0 else length)
    return head("POST", path, fields | dict(headers or {})) + body


def head(method: str, path: str, headers: Mapping[str, str], version: str = "1.1") -> bytes:
    """Write the head of a request."""
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """Write a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def events_of(*names: str) -> tuple[bytes, list[bytes]]:
    """Give a body with an event of each name, and the events."""
    events = [b'{"eventName":"%b","time":1790000000000}' % name.encode() for name in names]
    return b'{"events":[' + b",".join(events) + b"]}", events


@contextlib.asynccontextmanager
async def open_house(
    directory: Path,
    *,
    addresses: Sequence[Address] = (Address("127.0.0.1", 0),),
    connections_max: int = 1024,
    short_way: bool = True,
    limits: Mapping[str, float] | None = None,
    closed_spool: bool = False,
    spool_settings: Mapping[str, object] | None = None,
    **settings: object,
) -> AsyncIterator[House]:
    """Open the door; with `closed_spool` leave `door.open_to` to the test. At the end nothing may be held."""
    observer = Observer()
    decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
    given = {
        "paths": PATHS,
        "limits": Limits(**{**LIMITS, **(limits or {})}),  # type: ignore[arg-type]
        "cors_origins": (),
        "strip_private_attributes": True,
        "allowed_keys": lambda: None,
        "now_ms": lambda: NOW_MS,
        "decoders": decoders,
    }
    async with SpoolOnDisk(directory).open(**{"lanes_max": 100_000, **(spool_settings or {})}) as spool:
        door = Door(observer=observer, **{**given, **settings})  # type: ignore[arg-type]
        listener = Listener(door, connections_max=connections_max, short_way=short_way)
        names = await listener.open(addresses)
        if not closed_spool:
            door.open_to(spool)
        house = House(door, listener, spool, observer, names)
        try:
            yield house
        finally:
            await listener.close(2.0)
            decoders.shutdown(wait=True)
        await asyncio.sleep(0)
        check_books(spool)
        assert house.at_rest(), "something is still held for a request that is over"
