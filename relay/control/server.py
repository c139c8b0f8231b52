"""The control socket: answers one request after the other on each connection; belongs to the daemon's loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import structlog

from relay.control.protocol import (
    LINE_BYTES_MAX,
    SOCKET_NAME,
    Done,
    Lanes,
    Refused,
    decode_request,
    encode_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from relay.control.protocol import LaneList, Progress, Request
    from relay.control.verbs import Verbs

BACKLOG: Final = 8
CONNECTIONS_MAX: Final = 16
IDLE_SECONDS_MAX: Final = 60.0

_log = structlog.get_logger()


@contextlib.contextmanager
def short_name(folder: Path, name: str) -> Iterator[str]:
    """Give a name of a file in a folder that fits into a socket address, which takes 107 bytes at most."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except AttributeError:  # no O_PATH: not Linux
        yield str(folder / name)
        return
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


class ControlServer:
    """Open it once the spool is open, in a folder that this process holds; close it before the spool."""

    def __init__(self, folder: Path, verbs: Verbs) -> None:
        self._folder = folder
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen; where the file system has no sockets, say so and go on: only writing tools miss it."""
        try:
            listening = await asyncio.to_thread(self._bind)
        except OSError as exc:
            _log.warning("control_socket_missing", folder=str(self._folder), error=exc.strerror)
            return
        self._server = await asyncio.start_unix_server(self._meet, sock=listening, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """End what is under way: what is on disk stays done, the rest is not."""
        if self._server is None:
            return
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await asyncio.to_thread((self._folder / SOCKET_NAME).unlink, missing_ok=True)

    def _bind(self) -> socket.socket:
        path = self._folder / SOCKET_NAME
        path.unlink(missing_ok=True)  # of a run that was killed: the folder is ours
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_name(self._folder, SOCKET_NAME) as name:
                listening.bind(name)
            path.chmod(0o600)
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        return listening

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            if len(self._talks) > CONNECTIONS_MAX:
                writer.write(encode_reply(Refused("busy", "too many tools are connected; try again")))
            else:
                await self._talk(reader, writer)
        except (OSError, TimeoutError, ValueError):
            pass  # the tool went away, fell asleep, or sent a line without end
        finally:
            self._talks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_SECONDS_MAX):
                line = await reader.readline()
            if not line:
                return
            request = decode_request(line)
            reply = request if isinstance(request, Refused) else await self._verbs.run(request, _teller(writer))
            if not isinstance(request, Refused | Lanes):
                _note(request, reply)
            writer.write(encode_reply(reply))
            await writer.drain()


def _teller(writer: asyncio.StreamWriter) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if writer.is_closing():
            raise ConnectionResetError("the tool went away")
        writer.write(encode_reply(progress))

    return tell


def _note(request: Request, reply: Done | LaneList | Refused) -> None:
    """Leave a trace of what an operator did; a key is never part of it."""
    verb = type(request).__name__.lower()
    if isinstance(reply, Refused):
        _log.warning("operator_refused", verb=verb, why=reply.message)
    else:
        letters = {"chunks": reply.chunks, "events": reply.events} if isinstance(reply, Done) and reply.chunks else {}
        _log.info("operator_did", verb=verb, lanes=[lane.fingerprint for lane in reply.lanes], **letters)
