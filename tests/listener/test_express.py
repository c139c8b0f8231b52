"""The short way of simple requests: taken when it can be, in order with all else, and no client can tell."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from listener.house import EVENT, House, events_of, open_house, post

SESSION = {"statsig-server-session-id": "s-1", "statsig-api-key": "secret-a"}


class GeneralWay:
    """Counts the requests that aiohttp handles."""

    def __init__(self, house: House) -> None:
        self.requests = 0
        self._handle = house.door.handle

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        return await self._handle(request)


@pytest.fixture
def short_way() -> bool:
    """These tests are about the short way alone."""
    return True


@pytest.fixture
def general(house: House) -> GeneralWay:
    way = GeneralWay(house)
    house.listener._runner.server.request_handler = way
    return way


async def test_simple_requests_never_reach_aiohttp(house: House, general: GeneralWay):
    async with house.client() as client:
        for _ in range(3):
            await client.send(post())
            assert (await client.read()).status == 202
    assert general.requests == 0
    assert await house.stored() == [EVENT] * 3


async def test_both_ways_answer_with_the_same_words(house: House, general: GeneralWay):
    short = await house.exchange(post())
    long = await house.exchange(post(headers={"Connection": "close"}))
    assert general.requests == 1
    assert (short.status, short.body) == (long.status, long.body)
    assert set(long.headers) - set(short.headers) == {"connection"}
    assert set(short.headers) <= set(long.headers)
    assert short.headers["content-type"] == long.headers["content-type"]


async def test_a_refusal_is_given_by_the_general_way(house: House, general: GeneralWay):
    answer = await house.exchange(post(b'{"events":[]}'))
    assert (answer.status, general.requests) == (400, 1)
    assert house.untouched()
    assert house.refused() == {"invalid": 1}


async def test_a_body_in_two_segments_is_still_simple_when_the_rest_comes_at_once(house: House, general: GeneralWay):
    async with house.client() as client:
        await client.send(post()[:-5])
        await asyncio.sleep(0.005)
        await client.send(post()[-5:])
        assert (await client.read()).status == 202
    assert general.requests == 0


async def test_a_body_whose_rest_is_late_is_left_to_aiohttp(house: House, general: GeneralWay):
    async with house.client() as client:
        await client.send(post()[:-5])
        await asyncio.sleep(0.2)
        await client.send(post()[-5:])
        assert (await client.read()).status == 202
    assert general.requests == 1
    assert await house.stored() == [EVENT]


async def test_requests_sent_ahead_are_answered_in_order_whichever_way_they_go(house: House):
    bodies = [events_of(f"e{n}") for n in range(30)]
    requests = [
        post(body, headers={"Connection": "keep-alive"} | ({"X-Request-Id": f"id-{n}"} if n >= 10 else {}))
        for n, (body, _) in enumerate(bodies)
    ]
    async with house.client() as client:
        await client.send(b"".join(requests))
        answers = [await client.read() for _ in requests]
    assert [answer.status for answer in answers] == [202] * 30
    assert [answer.headers["x-request-id"] for answer in answers[10:]] == [f"id-{n}" for n in range(10, 30)]
    assert await house.stored() == [event for _, events in bodies for event in events]


async def test_a_client_that_sends_far_ahead_is_held_back_and_still_answered(house: House):
    body, _ = events_of(*[f"event-{n}" for n in range(500)])
    async with house.client() as client:
        sending = asyncio.ensure_future(client.send(post(body) * 60))
        for _ in range(60):
            assert (await client.read()).status == 202
        await sending
    assert len(await house.stored()) == 60 * 500


async def test_while_draining_every_answer_asks_to_close(house: House):
    async with house.client() as client:
        await client.send(post())
        assert (await client.read()).status == 202
        house.listener.drain()
        await client.send(post())
        answer = await client.read()
        assert answer.headers["connection"] == "close"
        assert await client.closed()


async def test_what_a_client_sends_again_is_answered_202_and_stored_once(house: House):
    body, events = events_of("a", "b")
    timed = [event[:-1] + b',"time":5}' for event in events]
    body = b'{"events":[' + b",".join(timed) + b"]}"
    for headers in (SESSION, SESSION, SESSION | {"Connection": "close"}):
        assert (await house.exchange(post(body, headers=headers))).status == 202
    assert await house.stored() == timed
    assert (house.observer.accepted_events, house.observer.suppressed_events) == (6, 4)
    assert house.spool.stats().enqueued_events == 2


async def test_the_new_events_of_a_repeated_request_are_stored(house: House):
    def body(*values: int) -> bytes:
        return b'{"events":[%b]}' % b",".join(b'{"eventName":"e","time":%d}' % value for value in values)

    await house.exchange(post(body(1, 2), headers=SESSION))
    assert (await house.exchange(post(body(2, 3, 1, 4), headers=SESSION))).json == {"success": True}
    assert await house.stored() == [b'{"eventName":"e","time":%d}' % value for value in (1, 2, 3, 4)]
    assert house.observer.suppressed_events == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),  # no session
        (SESSION, SESSION | {"statsig-server-session-id": "s-2"}),
        (SESSION, SESSION | {"statsig-api-key": "secret-b"}),
    ],
)
async def test_what_only_looks_like_a_repeat_is_stored_again(house: House, first: dict, second: dict):
    body = b'{"events":[{"eventName":"e","time":5}]}'
    for headers in (first, second):
        assert (await house.exchange(post(body, headers=headers))).status == 202
    assert len(await house.stored()) == 2
    assert house.observer.suppressed_events == 0


async def test_equal_events_in_one_request_and_events_without_a_time_are_never_taken_for_repeats(house: House):
    twice = b'{"events":[{"eventName":"e","time":5},{"eventName":"e","time":5}]}'
    await house.exchange(post(twice, headers=SESSION))
    for _ in range(3):
        await house.exchange(post(b'{"events":[{"eventName":"e"}]}', headers=SESSION))
    assert len(await house.stored()) == 5


async def test_a_batch_that_another_relay_sends_again_is_stored_once(house: House):
    body = b'{"events":[{"eventName":"e"},{"eventName":"e"}]}'  # neither a session nor times: only the id tells
    for batch, way in (("b-1", {}), ("b-1", {}), ("b-1", {"Connection": "close"}), ("b-2", {})):
        headers = {"statsig-relay-batch-id": batch} | way
        assert (await house.exchange(post(body, headers=headers))).status == 202
    assert len(await house.stored()) == 4
    assert house.observer.suppressed_events == 4


async def test_suppressing_can_be_switched_off(tmp_path):
    body = b'{"events":[{"eventName":"e","time":5}]}'
    async with open_house(tmp_path, suppress_resends=False) as house:
        for _ in range(2):
            await house.exchange(post(body, headers=SESSION))
        assert len(await house.stored()) == 2


def test_aiohttp_has_the_names_that_the_short_way_uses():
    names = {"_loop", "_keepalive_timeout", "_next_keepalive_close_time", "_waiter"}
    slots = {name for kind in web.RequestHandler.__mro__ for name in getattr(kind, "__slots__", ())}
    assert names <= slots
    assert {"data_received", "eof_received", "connection_lost", "_process_keepalive"} <= set(dir(web.RequestHandler))
