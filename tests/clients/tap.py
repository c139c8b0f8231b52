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
    from collections.abc import Iterator, Mapping

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
        return int(self.answer.start.split(" ")[1])

    def events(self) -> list[bytes]:
        """Give the raw bytes of each event that was sent."""
        return split_events(_inflate(self.request.body))


@dataclass
class _Connection:
    said: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


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
        """Give what was said so far; a request that has no answer yet is an error."""
        return [exchange for connection in list(self._connections) for exchange in _pair(connection)]

    def posts(self) -> list[Exchange]:
        """Give the requests that carried events."""
        return [exchange for exchange in self.exchanges() if exchange.method == "POST"]

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


def _pair(connection: _Connection) -> list[Exchange]:
    requests = list(_messages(bytes(connection.said)))
    answers = [message for message in _messages(bytes(connection.answered)) if not _is_interim(message)]
    return [Exchange(request, answer) for request, answer in zip(requests, answers, strict=True)]


def _is_interim(answer: Message) -> bool:
    return int(answer.start.split(" ")[1]) in INTERIM


def _messages(stream: bytes) -> Iterator[Message]:
    while stream:
        head, mark, stream = stream.partition(b"\r\n\r\n")
        assert mark, f"a head is cut short: {head[:200]!r}"
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, stream = _join_chunks(stream)
        else:
            length = int(headers.get("content-length", "0"))
            body, stream = stream[:length], stream[length:]
            assert len(body) == length, f"a body is cut short: {len(body)} of {length} bytes"
        yield Message(start, headers, body)


def _join_chunks(stream: bytes) -> tuple[bytes, bytes]:
    """Give the body that stands in chunks, and what follows it."""
    body = b""
    while True:
        size_line, mark, stream = stream.partition(b"\r\n")
        assert mark, "a chunk is cut short"
        size = int(size_line.split(b";")[0], 16)
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
