"""Many connections: who is let in, who goes first, who has stayed too long, and how the door closes."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from listener.house import BODY, EVENT, Client, House, open_house, post

from relay.listener.connection import HEAD_SECONDS_MAX, Connection
from relay.listener.crowd import LINGERING_MAX, WAITING_SECONDS_MIN


async def connect(house: House, rooms: AsyncExitStack, times: int) -> list[Client]:
    return [await rooms.enter_async_context(house.client()) for _ in range(times)]


async def until_open(house: House, connections: int) -> None:
    async with asyncio.timeout(5):
        while len(house.listener._crowd) != connections:
            await asyncio.sleep(0.01)


async def test_where_it_is_full_the_longest_idle_connection_gives_way(tmp_path):
    async with open_house(tmp_path, connections_max=3) as house, AsyncExitStack() as rooms:
        clients = await connect(house, rooms, 3)
        for client in clients[1:], clients[:1]:  # the first one is the last to have been used
            for one in client:
                await one.send(post())
                assert (await one.read()).status == 202
        await asyncio.sleep(WAITING_SECONDS_MIN + 0.1)
        (newcomer,) = await connect(house, rooms, 1)
        await newcomer.send(post())
        assert (await newcomer.read()).status == 202
        assert await clients[1].closed(1)
        for one in (clients[0], clients[2]):
            await one.send(post())
            assert (await one.read()).status == 202
        assert len(house.listener._crowd) == 3


async def test_where_all_are_busy_a_newcomer_is_503_and_closed(tmp_path):
    async with open_house(tmp_path, connections_max=2) as house, AsyncExitStack() as rooms:
        busy = await connect(house, rooms, 2)
        for one in busy:
            await one.send(post(b"", length=len(BODY)))
        await asyncio.sleep(WAITING_SECONDS_MIN + 0.1)
        for _ in range(3):
            async with house.client() as newcomer:
                await newcomer.send(post(b"x" * 300_000))
                answer = await newcomer.read()
                assert answer.status == 503
                code, message = answer.refusal()
                assert code == "connections_full"
                assert "listen.connections_max" in message
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["connection"] == "close"
                assert await newcomer.closed(1)
        assert house.answered() == {503: 3}
        for one in busy:
            await one.send(BODY)
            assert (await one.read()).status == 202


async def test_one_that_has_just_come_is_not_closed_before_it_could_speak(tmp_path):
    async with open_house(tmp_path, connections_max=1) as house, house.client() as first:
        await until_open(house, 1)
        assert (await house.post()).status == 503
        await first.send(post())
        assert (await first.read()).status == 202


async def test_strangers_that_say_nothing_are_closed_and_their_number_is_bounded(tmp_path):
    async with open_house(tmp_path, connections_max=1) as house, AsyncExitStack() as rooms:
        (busy,) = await connect(house, rooms, 1)
        await busy.send(post(b"", length=9))
        await asyncio.sleep(0.05)
        strangers = await connect(house, rooms, LINGERING_MAX + 20)
        await asyncio.sleep(0.2)
        assert len(house.listener._crowd._lingering) == LINGERING_MAX
        answered = [one for one in strangers if one.reader._buffer]
        assert len(answered) == 20, "those beyond the bound are answered at once"
        for one in strangers:
            if one not in answered:
                assert await one.closed(4)
        assert not house.listener._crowd._lingering


async def test_room_that_was_taken_is_given_back_however_connections_end(tmp_path):
    async with open_house(tmp_path, connections_max=5) as house:
        for round_ in range(20):
            async with AsyncExitStack() as rooms:
                clients = await connect(house, rooms, 5)
                for n, one in enumerate(clients):
                    await one.send((post(), post(b"", length=5), b"POST", b"junk\r\n\r\n", b"")[(n + round_) % 5])
                await asyncio.sleep(0.01)
                for one in clients[::2]:
                    one.reset()
            await until_open(house, 0)
        assert (await house.post()).status == 202


# ── heads that take too long ───────────────────────────────────────────────────────────────────────────────────────


def only(house: House) -> Connection:
    (connection,) = house.listener._crowd._members
    return connection


@pytest.mark.parametrize("before", [b"", post()])
async def test_a_head_that_takes_too_long_is_408_counted_from_its_first_byte(house: House, before):
    async with house.client() as client:
        if before:
            await client.send(before)
            assert (await client.read()).status == 202
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
        for byte in post()[:20]:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.01)
        connection = only(house)
        connection.expire(began + HEAD_SECONDS_MAX - 0.1)
        await asyncio.sleep(0.02)
        assert not client.reader.at_eof()
        connection.expire(began + HEAD_SECONDS_MAX + 0.15)
        answer = await client.read()
        assert answer.status == 408
        answer.refusal()
        assert await client.closed()
    assert house.answered()[408] == 1


async def test_a_slow_body_is_no_slow_head(house: House):
    async with house.client() as client:
        await client.send(post(b"", length=len(BODY)))
        for at in range(len(BODY)):
            await client.send(BODY[at : at + 1])
            await asyncio.sleep(0.001)
            if at < len(BODY) - 1:
                only(house).expire(asyncio.get_running_loop().time() + 100)
        assert (await client.read()).status == 202


async def test_an_idle_connection_is_no_slow_head(house: House):
    async with house.client() as client:
        for _ in range(3):
            await client.send(post())
            assert (await client.read()).status == 202
            only(house).expire(asyncio.get_running_loop().time() + HEAD_SECONDS_MAX + 1)
        await asyncio.sleep(0.02)
        await client.send(post()[:50])
        await asyncio.sleep(0.02)
        await client.send(post()[50:])
        assert (await client.read()).status == 202
        only(house).expire(asyncio.get_running_loop().time() + HEAD_SECONDS_MAX + 1)
        await client.send(post())
        assert (await client.read()).status == 202


# ── the end ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_while_draining_it_goes_on_accepting_and_asks_each_client_to_close(house: House):
    async with house.client() as kept:
        await kept.send(post())
        assert "connection" not in (await kept.read()).headers
        house.listener.drain()
        await kept.send(post())
        assert (await kept.read()).headers["connection"] == "close"
        assert await kept.closed()
    answer = await house.post()
    assert (answer.status, answer.headers["connection"]) == (202, "close")


async def test_closing_answers_who_is_still_sending_and_takes_what_arrives_in_time(tmp_path):
    async with open_house(tmp_path) as house, AsyncExitStack() as rooms:
        idle, slow, quick, mute = await connect(house, rooms, 4)
        for one in (slow, quick):
            await one.send(post(b"", length=len(BODY)))
        await mute.send(b"POST /v1")
        await asyncio.sleep(0.05)
        started = time.monotonic()
        closing = asyncio.create_task(house.listener.close(0.6))
        assert await idle.closed(0.5)
        assert await mute.closed(0.5)
        await quick.send(BODY)
        assert (await quick.read()).status == 202
        answer = await slow.read()
        assert (answer.status, answer.refusal()[0]) == (503, "stopping")
        await closing
        assert 0.5 < time.monotonic() - started < 2
        assert await slow.closed()
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection("127.0.0.1", house.port)
        assert await house.stored() == [EVENT]
        await house.listener.close(0)  # again does nothing


async def test_closing_waits_for_nobody_where_nobody_is_busy(tmp_path):
    async with open_house(tmp_path) as house, house.client() as client:
        await client.send(post())
        await client.read()
        started = time.monotonic()
        await house.listener.close(5)
        assert time.monotonic() - started < 0.5


async def test_closing_a_listener_that_never_opened_neither_waits_nor_shuts_the_door(house: House):
    """So it is closed where its address is taken: whoever else has the door goes on as before."""
    other = type(house.listener)(house.door)
    await asyncio.wait_for(other.close(60), 1)
    async with house.client() as client:
        await client.send(post())
        answer = await client.read()
    assert answer.status == 202
    assert "connection" not in answer.headers
