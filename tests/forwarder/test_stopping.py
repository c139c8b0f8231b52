from __future__ import annotations

import asyncio
from collections import Counter

from fakes.poster import YES, FakePoster
from fakes.relay import bench
from fakes.time import run_virtually

from relay.forwarder.delivery import Response


def test_draining_delivers_what_it_can_and_ends_early_when_all_is_done():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(seconds=0.1), batch_events_max=10) as b:
            for at in range(50):
                await b.put(*(f"{at}-{i}" for i in range(10)))
            began = loop.time()
            await b.forwarder.drain(10)
            assert loop.time() - began < 2
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_draining_ends_in_time_and_acks_nothing_that_was_not_proven():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(seconds=0.8), in_flight_max=2, batch_events_max=10) as b:
            for at in range(50):
                await b.put(*(f"{at}-{i}" for i in range(10)))
            await asyncio.sleep(2)
            began = loop.time()
            await b.forwarder.drain(5)
            assert loop.time() - began <= 5
            await asyncio.sleep(0)
            b.spool.commit()
            assert len(b.spool.queued()) * 10 == len(b.sent) - len(b.poster.taken) > 0
            assert not b.observer.attempts["ambiguous"], "none was started that could not end in time"

    run_virtually(main())


def test_an_attempt_that_does_not_end_in_time_is_given_up_as_unknown_and_kept():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(seconds=3600)) as b:
            await b.put("a", "b")
            await asyncio.sleep(0.1)
            began = loop.time()
            await b.forwarder.drain(5)
            assert 4.9 < loop.time() - began < 5.1
            assert b.observer.attempts == {"ambiguous": 1}
            assert b.observer.events == {"ambiguous": 2}
            (row,) = b.spool.queued()
            assert not row.leased

    run_virtually(main())


def test_draining_does_not_wait_for_a_host_that_is_down():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(lambda _: Response(503)), retry_seconds_min=100) as b:
            for at in range(9):
                await b.put(f"e{at}")
                await asyncio.sleep(60)
            began = loop.time()
            await b.forwarder.drain(10)
            assert loop.time() - began < 1

    run_virtually(main())


def test_draining_starts_nothing_without_time_left():
    async def main():
        async with bench(FakePoster(seconds=0.7)) as b:
            await b.put("under way")
            drained = asyncio.create_task(b.forwarder.drain(0.9))
            await asyncio.sleep(0)
            await b.put("too late", key="other")
            await drained
            assert b.poster.taken == ["under way"]
            assert len(b.poster.posts) == 1

    run_virtually(main())


def test_cancelled_in_mid_flight_it_gives_back_every_chunk_and_counts_the_unknown():
    async def main():
        async with bench(FakePoster(seconds=10), batch_events_max=5) as b:
            for at in range(20):
                await b.put(*(f"{at}-{i}" for i in range(5)))
            await asyncio.sleep(1)
            assert b.spool.leased()
        # bench has cancelled it, and checked that nothing is leased and nothing lost
        assert b.observer.attempts == {"ambiguous": 8}
        assert len(b.spool.queued()) == 20

    run_virtually(main())


def test_paused_lanes_stay_until_they_are_resumed():
    async def main():
        async with bench(age_seconds_max=3600) as b:
            b.forwarder.pause(1)
            await b.put("held")
            await b.put("free", key="other")
            await asyncio.sleep(86400)
            assert b.poster.taken == ["free"]
            assert b.forwarder.numbers().lanes[1].state == "paused"
            assert b.forwarder.is_held_back(1)
            b.forwarder.resume(1)
            await b.until_empty(1)

    run_virtually(main())


def test_a_lane_that_lost_its_key_while_the_index_was_read_is_held_and_does_not_expire():
    """The spool holds it and has nobody to tell: no operator paused it."""

    async def main():
        async with bench(age_seconds_max=3600) as b:
            b.spool.paused.add(1)
            await b.put("held")
            await asyncio.sleep(86400)
            assert not b.spool.dead()
            assert not b.poster.taken
            assert b.forwarder.numbers().lanes[1].state == "paused"
            b.spool.paused.clear()
            b.forwarder.resume(1)
            await b.until_empty(1)
            assert b.poster.taken == ["held"]

    run_virtually(main())


def test_resuming_a_parked_lane_tries_it_at_once():
    async def main():
        works = []
        async with bench(FakePoster(lambda _: YES if works else Response(401))) as b:
            await b.put("a")
            await asyncio.sleep(5)
            works.append(True)
            b.forwarder.resume(1)
            await b.until_empty(0.5)

    run_virtually(main())


def test_the_numbers_say_how_it_stands():
    async def main():
        async with bench(FakePoster(lambda post: Response(401) if post.key == "secret-b" else YES)) as b:
            for at in range(30):
                await b.put(f"a{at}")
                await asyncio.sleep(0.1)
            await b.put("b", key="secret-b")
            await asyncio.sleep(1)
            numbers = b.forwarder.numbers()
            assert (numbers.forward.gate_limit, numbers.forward.gate_limit_max) == (8, 8)
            assert numbers.forward.in_flight_requests == 0
            assert numbers.forward.next_try_in_seconds is None
            assert abs(numbers.forward.last_success_at - b.wall()) < 2
            assert len(numbers.forward.attempts) == 20
            newest = numbers.forward.attempts[0]
            assert (newest.outcome, newest.status, newest.events) == ("auth", 401, 1)
            standing = numbers.lanes[2]
            assert (standing.state, standing.error) == ("parked", "HTTP 401")
            assert 58 < standing.next_try_in_seconds <= 60
            assert "secret" not in repr(numbers)

    run_virtually(main())
