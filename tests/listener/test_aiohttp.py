"""What the listener takes for granted of aiohttp, private names included: one test for each."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from listener.house import post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SEEN: list[str] = []


class Watched(web.RequestHandler):
    """Notes what aiohttp calls and when."""

    __slots__ = ("__weakref__", "notes")

    def __init__(self, *given, **settings):
        super().__init__(*given, **settings)
        self.notes: list[str] = []

    def log_access(self, *_):
        self.notes.append("log_access")

    def handle_error(self, request, status=500, *_):  # noqa: ARG002 - called by name and place as in aiohttp
        self.notes.append(f"handle_error {status}")
        response = web.Response(status=418)
        response.force_close()
        return response


class Server(web.Server):
    """Hands out watched connections."""

    def __call__(self):
        self.last = Watched(self, loop=asyncio.get_running_loop(), auto_decompress=False, access_log=None)
        return self.last


@contextlib.asynccontextmanager
async def serving(handler) -> AsyncIterator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    server = Server(handler)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    await asyncio.sleep(0.02)
    try:
        yield server, reader, writer
    finally:
        writer.close()
        listening.close()
        await server.shutdown(0)


async def ok(request: web.BaseRequest) -> web.Response:
    await request.content.read()
    return web.Response(status=202)


def is_waiting(connection: Watched) -> bool:
    return connection._waiter is not None and not connection._waiter.done()


async def test_waiter_is_pending_exactly_while_no_request_is_in_hand():
    go_on = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.Response:
        await go_on.wait()
        return await ok(request)

    async with serving(slow) as (server, reader, writer):
        assert is_waiting(server.last)
        writer.write(post()[:40])
        await asyncio.sleep(0.02)
        assert is_waiting(server.last), "in the head"
        writer.write(post()[40:])
        await asyncio.sleep(0.02)
        assert not is_waiting(server.last)
        go_on.set()
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.02)
        assert is_waiting(server.last)


async def test_log_access_is_called_once_an_answer_is_written_and_without_an_access_log():
    async with serving(ok) as (server, reader, writer):
        for times in (1, 2):
            writer.write(post())
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.02)
            assert server.last.notes == ["log_access"] * times


async def test_handle_error_answers_what_the_parser_refuses():
    async with serving(ok) as (server, reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        assert b" 418 " in await reader.readuntil(b"\r\n")
        assert server.last.notes[0] == "handle_error 400"


async def test_a_malformed_chunk_is_queued_as_a_message_while_its_request_waits_for_ever():
    """The reason why the connection looks at `_messages`; should aiohttp mend this, the look can go."""
    waiting = asyncio.Event()

    async def read(request: web.BaseRequest) -> web.Response:
        waiting.set()
        await request.content.read()
        return web.Response(status=202)

    async with serving(read) as (server, _, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await waiting.wait()
        writer.write(b"ZZ\r\n")
        await asyncio.sleep(0.1)
        assert len(server.last._messages) == 1
        assert not is_waiting(server.last)


async def test_an_exception_set_on_the_content_reaches_its_reader():
    async def fail(request: web.BaseRequest) -> web.Response:
        request.content.set_exception(web.RequestPayloadError("x"))
        with pytest.raises(web.RequestPayloadError):
            await request.content.readany()
        return web.Response(status=202)

    async with serving(fail) as (_, reader, writer):
        writer.write(post(b"", length=5))
        assert b" 202 " in await reader.readuntil(b"\r\n")


async def test_the_transport_of_a_request_is_gone_with_its_connection():
    found = asyncio.get_running_loop().create_future()

    async def read(request: web.BaseRequest) -> web.Response:
        try:
            await request.content.readany()
        except OSError:
            found.set_result(request.transport is None or request.transport.is_closing())
        return web.Response(status=202)

    async with serving(read) as (_, _, writer):
        writer.write(post(b"", length=5))
        await asyncio.sleep(0.02)
        writer.transport.abort()
        assert await found


async def test_a_server_header_of_ours_is_left_alone():
    async def named(_: web.BaseRequest) -> web.Response:
        return web.Response(status=202, headers={"Server": "ours"})

    async with serving(named) as (_, reader, writer):
        writer.write(post())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b"Server: ours\r\n" in answer
        assert b"aiohttp" not in answer
