"""A tap between an SDK and the relay: passes every byte on as it came and remembers what was said, both ways.

It works on connections, not on requests, so nothing that the SDK or the relay does is smoothed over; requests and
answers are read out of the record afterwards.
"""

from __future__ import annotations

import gzip
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import zstandard

from relay.commands.witness import split_events

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_BYTES = 256 * 1024
INTERIM = range(100, 200)


@dataclass(frozen=True)
class Message:
    """A request or an answer, its body without the transfer coding."""

    start: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


@dataclass(frozen=True)
class Exchange:
    """A request as the SDK sent it, and the answer that the relay gave."""

    request: Message
    answer: Message

    @property
    def method(self) -> str:
        return self.request.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.request.start.split(" ")[1]

    @property
    def status(self) -> int:
        return _status(self.answer)

    def events(self) -> list[bytes]:
        """Give the raw bytes of each event that was sent."""
        return split_events(_inflate(self.request.body))


@dataclass
class _Connection:
    said: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)

    def exchanges(self) -> list[Exchange]:
        requests, _ = _read(bytes(self.said))
        answers, _ = _read(bytes(self.answered))
        finals = [answer for answer in answers if _status(answer) not in INTERIM]
        return [Exchange(request, answer) for request, answer in zip(requests, finals, strict=False)]

    def settled(self) -> bool:
        requests, rest = _read(bytes(self.said))
        return not rest and len(requests) == len(self.exchanges())


class Tap:
    """Listens on `port` of loopback while it is entered, and connects each client on to `target_port`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._connections: list[_Connection] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in list(self._threads):
            thread.join()

    def exchanges(self) -> list[Exchange]:
        """Give the requests that were answered so far."""
        return [exchange for connection in list(self._connections) for exchange in connection.exchanges()]

    def posts(self) -> list[Exchange]:
        """Give those of them that carried events."""
        return [exchange for exchange in self.exchanges() if exchange.method == "POST"]

    def settled(self) -> bool:
        """Tell whether all that was asked is answered."""
        return all(connection.settled() for connection in list(self._connections))

    def _run(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, name="tap")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                relay = socket.create_connection(("127.0.0.1", self._target_port))
                connection = _Connection()
                self._connections.append(connection)
                self._sockets += [client, relay]
                self._run(_pump, client, relay, connection.said)
                self._run(_pump, relay, client, connection.answered)


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with suppress(OSError):  # either side hung up: the other will notice
        while piece := source.recv(READ_BYTES):
            record += piece
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _status(answer: Message) -> int:
    return int(answer.start.split(" ")[1])


def _read(stream: bytes) -> tuple[list[Message], bytes]:
    """Give the messages that are whole, and the bytes behind the last of them."""
    messages: list[Message] = []
    while (found := _read_one(stream)) is not None:
        message, stream = found
        messages.append(message)
    return messages, stream


def _read_one(stream: bytes) -> tuple[Message, bytes] | None:
    head, mark, rest = stream.partition(b"\r\n\r\n")
    if not mark:
        return None
    start, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        joined = _join_chunks(rest)
        return joined and (Message(start, headers, joined[0]), joined[1])
    length = int(headers.get("content-length", "0"))
    return (Message(start, headers, rest[:length]), rest[length:]) if len(rest) >= length else None


def _join_chunks(stream: bytes) -> tuple[bytes, bytes] | None:
    """Give the body that stands in chunks, and what follows it; None where its end is missing."""
    body = b""
    while True:
        size_line, mark, stream = stream.partition(b"\r\n")
        size = int(size_line.split(b";")[0], 16) if mark else 0
        if not mark or len(stream) < size + 2:
            return None
        body, stream = body + stream[:size], stream[size + 2 :]
        if size == 0:
            return body, stream


def _inflate(body: bytes) -> bytes:
    """Undo the compression that the first bytes tell of."""
    if body.startswith(b"\x1f\x8b"):
        return gzip.decompress(body)
    if body.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body
