"""Clients that go away: at every stage, by close and by reset. Nobody else notices, and nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from listener.house import BODY, CHUNKED, EVENT, House, chunked, open_house, post

from relay.listener.connection import ANSWER_UNREAD_SECONDS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.spool import Spool

REQUEST = post()
HEAD_END = len(REQUEST) - len(BODY)
STAGES = {
    "before the head": b"",
    "in the head": REQUEST[:30],
    "in the last line of the head": REQUEST[: HEAD_END - 1],
    "after the head": REQUEST[:HEAD_END],
    "in the body": REQUEST[: HEAD_END + 10],
    "one byte before the end": REQUEST[:-1],
    "in a chunk": post(b"30\r\n" + BODY[:10], headers=CHUNKED, length=None),
    "between chunks": post(b"a\r\n" + BODY[:10] + b"\r\n", headers=CHUNKED, length=None),
    "before the last chunk": post(chunked(BODY)[:-5], headers=CHUNKED, length=None),
    "waiting for 100": post(b"", length=len(BODY), headers={"Expect": "100-continue"}),
}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["hang_up", "reset"])
async def test_a_client_that_hangs_up_leaves_nothing_behind(house: House, caplog, stage, how):
    before = descriptors()
    for _ in range(5):
        async with house.client() as client:
            await client.send(STAGES[stage])
            await asyncio.sleep(0.01)
            getattr(client, how)()
    await asyncio.sleep(0.1)
    assert house.at_rest()
    assert house.untouched()
    assert not house.answered(), "nobody was answered"
    assert descriptors() == before
    assert not caplog.records, "and nobody complained"
    assert (await house.post()).status == 202


class SlowSpool:
    """Appends late."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def append(self, records: object, *, deadline: float) -> None:
        self.arrived.set()
        await self.go_on.wait()
        await self._spool.append(records, deadline=deadline)  # type: ignore[arg-type]

    def submit(self, records: object, *, deadline: float, done: Callable[[None], None]) -> None:
        task = asyncio.get_running_loop().create_task(self.append(records, deadline=deadline))
        self.tasks.add(task)
        task.add_done_callback(lambda ended: done(ended.result()))


@pytest.mark.parametrize("how", ["hang_up", "reset"])
async def test_a_client_that_hangs_up_before_its_answer_takes_nothing_back(tmp_path, short_way, caplog, how):
    async with open_house(tmp_path, short_way=short_way, closed_spool=True) as house:
        slow = SlowSpool(house.spool)
        house.door.open_to(slow)  # type: ignore[arg-type]
        async with house.client() as client:
            await client.send(REQUEST)
            await slow.arrived.wait()
            getattr(client, how)()
        await asyncio.sleep(0.05)
        slow.go_on.set()
        await asyncio.sleep(0.2)
        assert await house.stored() == [EVENT]
        assert house.observer.accepted_events == 1
        assert not caplog.records


async def test_a_client_that_sends_no_more_still_reads_its_answer(tmp_path, short_way):
    async with open_house(tmp_path, short_way=short_way, closed_spool=True) as house:
        slow = SlowSpool(house.spool)
        house.door.open_to(slow)  # type: ignore[arg-type]
        async with house.client() as client:
            await client.send(REQUEST)
            client.writer.write_eof()
            await slow.arrived.wait()
            await asyncio.sleep(0.05)
            slow.go_on.set()
            assert (await client.read()).status == 202
            assert await client.closed()


async def test_a_client_that_sends_no_more_in_mid_body_is_closed(house: House):
    async with house.client() as client:
        await client.send(REQUEST[:-1])
        client.writer.write_eof()
        assert await client.closed(2)
    assert house.untouched()


async def test_a_client_that_never_reads_its_answers_is_cut_off_in_time(house: House):
    bad = b'{"events":[' + b",".join([b"{}"] * 900) + b"," + EVENT + b"]}"  # 40 KB to read for 3 KB sent
    async with house.client() as client:
        client.writer.transport.pause_reading()
        (connection,) = house.listener._crowd._members
        async with asyncio.timeout(15):
            while connection.stuck_since is None:
                client.writer.write(post(bad))
                await asyncio.sleep(0.001)
        connection.expire(connection.stuck_since + ANSWER_UNREAD_SECONDS_MAX - 0.1)
        await asyncio.sleep(0.05)
        assert len(house.listener._crowd) == 1
        connection.expire(connection.stuck_since + ANSWER_UNREAD_SECONDS_MAX + 0.1)
        await asyncio.sleep(0.05)
        assert len(house.listener._crowd) == 0
