from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from fakes.poster import YES, FakePoster, Post
from fakes.relay import bench
from fakes.time import run_virtually
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import StoreFailed, StoreFull
from relay.forwarder.delivery import Response, TimedOut


def refusing(status: int, *bad: str):
    words = json.dumps({"error": f"cannot take {bad[0]}"}).encode()
    return lambda post: Response(status, words) if set(bad) & set(post.names) else YES


def dead(b) -> dict[str, str]:
    """Dead letters by name of their event: their reason."""
    return {json.loads(b.spool.texts([row])[0])["eventName"]: row.dead.reason for row in b.spool.dead()}


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_poison_event_is_found_and_every_other_arrives_exactly_once(status):
    async def main():
        async with bench(FakePoster(refusing(status, "7-13"))) as b:
            for at in range(20):
                await b.put(*(f"{at}-{i}" for i in range(50)))
            await b.until_empty(60)
            assert Counter(b.poster.taken) == Counter(set(b.sent) - {"7-13"})
            (row,) = b.spool.dead()
            assert (row.dead.reason, row.dead.status, row.ref.events) == ("rejected", status, 1)
            assert "cannot take 7-13" in row.dead.detail
            assert row.dead.attempts > 3
            assert abs(row.dead.first_attempt_at_ms - b.wall.ms()) < 60_000

    run_virtually(main())


def test_poison_in_every_fourth_batch_costs_only_the_poison():
    async def main():
        bad = {f"{at}-5" for at in range(0, 80, 4)}
        async with bench(FakePoster(refusing(400, *bad)), batch_events_max=10) as b:
            for at in range(80):
                await b.put(*(f"{at}-{i}" for i in range(10)))
            await b.until_empty(600)
            assert Counter(b.poster.taken) == Counter(set(b.sent) - bad)
            assert dead(b) == dict.fromkeys(bad, "rejected")
            assert b.forwarder.numbers().forward.gate_limit == 8

    run_virtually(main())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.sets(st.integers(0, 60)))
@settings(max_examples=40, deadline=None)
def test_whichever_events_are_refused_exactly_those_become_dead_letters(chunks, positions):
    names = [f"{at}-{i}" for at, size in enumerate(chunks) for i in range(size)]
    bad = {names[at] for at in positions if at < len(names)} or {"none"}

    async def main():
        async with bench(FakePoster(refusing(400, *bad))) as b:
            for at, size in enumerate(chunks):
                await b.put(*(f"{at}-{i}" for i in range(size)))
            await b.until_empty(600)
            assert Counter(b.poster.taken) == Counter(set(names) - bad)
            assert set(dead(b)) == bad & set(names)

    run_virtually(main())


def test_parts_of_a_cut_chunk_keep_what_travels_with_them():
    async def main():
        async with bench(FakePoster(refusing(400, "c"))) as b:
            extras = {"envelope": b'"user":{"userID":"u"}', "headers": b"statsig-sdk-type: py", "skew_ms": 5000}
            await b.put("a", "b", "c", "d", key="", **extras)
            await b.until_empty(60)
            assert Counter(b.poster.taken) == Counter("abd")
            assert all(post.headers["statsig-sdk-type"] == "py" for post in b.poster.posts)
            assert all("statsig-client-time" in post.headers for post in b.poster.posts)
            assert all(post.key == "default-key" for post in b.poster.posts)

    run_virtually(main())


def by_bytes(bytes_max: int | list[int]):
    def answer(post: Post):
        size = sum(len(json.dumps(event)) for event in post.events)
        return Response(413, b"too big") if size > (bytes_max if isinstance(bytes_max, int) else bytes_max[-1]) else YES

    return answer


def test_a_batch_too_big_is_cut_by_bytes_until_it_fits_and_the_size_is_learned():
    async def main():
        async with bench(FakePoster(by_bytes(40_000))) as b:
            for at in range(100):
                await b.put(*(f"{at}-{i}" for i in range(10)), padding=200)
            await b.until_empty(120)
            assert Counter(b.poster.taken) == Counter(b.sent)
            b.poster.posts.clear()
            for at in range(100):
                await b.put(*(f"again{at}-{i}" for i in range(10)), padding=200)
            await b.until_empty(120)
            assert not [post for post in b.poster.posts if post.answer != YES]
            assert Counter(b.poster.taken) == Counter(b.sent)
            assert not b.spool.dead()

    run_virtually(main())


def test_the_learned_size_recovers_slowly():
    async def main():
        limit = [40_000]
        async with bench(FakePoster(by_bytes(limit))) as b:
            for round_ in range(30):
                for at in range(100):
                    await b.put(*(f"{round_}-{at}-{i}" for i in range(10)), padding=200)
                await b.until_empty(120)
                limit.append(10_000_000)
                if round_ == 3:
                    few = len([post for post in b.poster.posts if post.at > asyncio.get_running_loop().time() - 30])
                    assert few >= 5
                await asyncio.sleep(1800)
            assert len(b.poster.posts[-1].names) == 990

    run_virtually(main())


def test_a_single_event_too_big_is_a_dead_letter_and_the_others_arrive():
    async def main():
        async with bench(FakePoster(by_bytes(40_000))) as b:
            b.forwarder.pause(1)
            await b.put("small-1", "small-2")
            await b.put("huge", padding=60_000)
            await b.put("small-3")
            b.forwarder.resume(1)
            await b.until_empty(60)
            assert sorted(b.poster.taken) == ["small-1", "small-2", "small-3"]
            assert dead(b) == {"huge": "too_large"}

    run_virtually(main())


@pytest.mark.parametrize("verb", ["bury", "replace"])
@pytest.mark.parametrize("error", [StoreFull("no room"), StoreFailed("I/O error")], ids=repr)
def test_a_disk_that_cannot_take_the_cut_only_delays_it(verb, error):
    async def main():
        broken = [True]
        async with bench(FakePoster(refusing(400, "c"))) as b:
            b.spool.fail = lambda asked: error if broken[0] and asked == verb else None
            await b.put("a", "b", "c", "d")
            await b.put("fine", key="other")
            await asyncio.sleep(7200)
            assert "fine" in b.poster.taken
            assert b.spool.queued()
            assert len(b.poster.posts) < 150, "upstream is not asked again and again for the disk's sake"
            broken[0] = False
            await b.until_empty(900)
            assert Counter(b.poster.taken) == Counter(["a", "b", "d", "fine"])
            assert dead(b) == {"c": "rejected"}

    run_virtually(main())


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_an_upstream_that_refuses_whatever_it_is_sent_costs_few_events_and_gets_the_rest_when_it_relents(
    status, figure
):
    async def main():
        loop = asyncio.get_running_loop()
        end = loop.time() + 6 * 3600
        poster = FakePoster(lambda post: Response(status, b"gateway misconfigured") if post.at < end else YES)
        async with bench(poster) as b:
            for minute in range(360):
                for key in range(3):
                    await b.put(*(f"{key}-{minute}-{i}" for i in range(20)), key=f"key-{key}")
                await asyncio.sleep(60)
            lost = dead(b)
            assert 10 <= len(lost) <= 10 + 8 + 3 * 12, "ten at once, those under way, and a few in an hour"
            assert len(poster.posts) < 1000
            figure(f"six hours of {status} to everything: {len(lost)} of {len(b.sent):,} events are dead letters")
            assert {lane.state for lane in b.forwarder.numbers().lanes.values()} <= {"backing_off"}
            await b.until_empty(1200)
            assert Counter(b.poster.taken) == Counter(set(b.sent) - set(dead(b)))
            assert dead(b) == lost
            assert not b.forwarder.numbers().lanes

    run_virtually(main())


def test_a_key_that_is_refused_throughout_keeps_its_events_and_delays_no_other():
    async def main():
        healed: list[bool] = []
        poster = FakePoster(lambda post: Response(400, b"wrong key type") if post.key == "bad" and not healed else YES)
        async with bench(poster) as b:
            for second in range(1800):
                await b.put(f"b{second}", key="bad")
                await b.put(f"o{second}", key="other")
                await asyncio.sleep(1)
                if second == 20:
                    (standing,) = b.forwarder.numbers().lanes.values()
                    assert (standing.state, standing.error) == ("backing_off", "HTTP 400 to whatever it is sent")
            assert 10 <= len(dead(b)) <= 18
            assert max(delay for delay, _ in b.observer.delays) < 0.2
            healed.append(True)
            await b.until_empty(900)
            assert Counter(b.poster.taken) == Counter(set(b.sent) - set(dead(b)))

    run_virtually(main())


def test_many_bad_events_in_a_row_hold_up_the_good_ones_behind_them_for_a_minute_or_two():
    async def main():
        bad = {f"0-{i}" for i in range(50)}
        async with bench(FakePoster(refusing(400, *bad))) as b:
            await b.put(*(f"0-{i}" for i in range(50)))
            for at in range(600):
                await b.put(f"good-{at}")
                await asyncio.sleep(1)
            assert max(delay for delay, _ in b.observer.delays) < 120
            await b.until_empty(3600)
            assert dead(b) == dict.fromkeys(bad, "rejected")
            assert Counter(b.poster.taken) == Counter(set(b.sent) - bad)

    run_virtually(main())


def test_a_good_event_among_what_was_refused_has_its_turn_though_bad_ones_keep_coming():
    async def main():
        poster = FakePoster(lambda post: YES if post.names == ["good"] else Response(400))
        async with bench(poster) as b:
            for at in range(12):
                await b.put(f"bad-{at}")
            await b.put("bad-a", "bad-b", "good", "bad-c")
            for at in range(4 * 360):
                await b.put(f"more-{at}")
                await asyncio.sleep(10)
            assert b.poster.taken == ["good"]

    run_virtually(main())


def test_a_key_that_works_again_before_an_upstream_that_refuses_everything_is_not_parked_any_more():
    async def main():
        status = [400]
        async with bench(FakePoster(lambda _: Response(status[0]))) as b:
            for at in range(12):
                await b.put(f"bad-{at}")
            await asyncio.sleep(20)
            for status[0], state in ((401, "parked"), (400, "backing_off")):
                b.forwarder.resume(1)
                await asyncio.sleep(0.5)
                assert b.forwarder.numbers().lanes[1].state == state

    run_virtually(main())


def test_an_upstream_that_refuses_everything_may_say_when_to_come_again():
    async def main():
        async with bench(FakePoster(lambda _: Response(400, retry_after="600"))) as b:
            for at in range(12):
                await b.put(f"bad-{at}")
                await asyncio.sleep(1)
            await asyncio.sleep(20)
            before = len(b.poster.posts)
            await asyncio.sleep(500)
            assert len(b.poster.posts) == before
            await asyncio.sleep(100)
            assert len(b.poster.posts) == before + 1

    run_virtually(main())


def test_a_lane_of_nothing_but_bad_events_ends_as_dead_letters_with_upstreams_words():
    async def main():
        async with bench(FakePoster(lambda _: Response(422, b"no such event"))) as b:
            for at in range(12):
                await b.put(f"bad-{at}")
                await asyncio.sleep(1)
            assert len(b.spool.queued()) == 2
            await b.until_empty(86400)
            assert set(dead(b).values()) == {"rejected"}
            assert all((row.dead.status, row.dead.detail) == (422, "no such event") for row in b.spool.dead())

    run_virtually(main())


async def steady(b, seconds: int) -> None:
    """Other traffic, so that the host is seen to work."""
    for second in range(seconds):
        await b.put(f"ok-{len(b.sent)}-{second}", key="other")
        await asyncio.sleep(1)


@pytest.mark.parametrize("answer", [Response(500), TimedOut(sent=True, detail="")], ids=repr)
def test_a_batch_that_alone_fails_is_taken_apart_slowly_down_to_the_culprit(answer):
    async def main():
        async with bench(FakePoster(lambda post: answer if "0-3" in post.names else YES)) as b:
            await steady(b, 3)
            await b.put(*(f"0-{i}" for i in range(8)))
            await steady(b, 1800)
            innocent = {f"0-{i}" for i in range(8)} - {"0-3"}
            assert innocent <= set(b.poster.taken)
            assert not b.spool.dead(), "not within half an hour"
            bad = [post for post in b.poster.posts if "0-3" in post.names]
            assert len(bad) < 60
            await steady(b, 3600)
            assert dead(b) == {"0-3": "poison"}
            delays = sorted(delay for delay, _ in b.observer.delays)
            assert delays[int(len(delays) * 0.99)] < 0.5
            assert max(Counter(b.poster.taken).values()) == 1
            (row,) = b.spool.dead()
            assert row.dead.attempts >= 20
            assert row.dead.status == getattr(answer, "status", 0)

    run_virtually(main())


def test_an_hour_alone_makes_no_poison_where_few_others_went_through():
    async def main():
        async with bench(FakePoster(lambda post: Response(500) if "bad" in post.names else YES)) as b:
            await b.put("first", key="other")
            await b.put("bad")
            for at in range(18):
                await asyncio.sleep(600)
                await b.put(f"o{at}", key="other")
            assert not b.spool.dead()
            for at in range(20):
                await asyncio.sleep(600)
                await b.put(f"p{at}", key="other")
            assert dead(b) == {"bad": "poison"}

    run_virtually(main())


def test_the_failures_of_a_batch_are_not_held_against_its_halves():
    async def main():
        async with bench(FakePoster(lambda post: Response(500) if "bad" in post.names else YES)) as b:
            await b.put("first", key="other")
            await b.put("bad", "good")
            for at in range(23):
                await asyncio.sleep(600)
                await b.put(f"o{at}", key="other")
            assert "good" in b.poster.taken
            assert not b.spool.dead(), "five failures of both, fewer than twenty of its own"
            for at in range(10):
                await asyncio.sleep(600)
                await b.put(f"p{at}", key="other")
            assert dead(b) == {"bad": "poison"}

    run_virtually(main())


def test_nothing_is_poison_while_the_host_fails_for_everybody():
    async def main():
        async with bench(FakePoster(lambda _: Response(500))) as b:
            await b.put("a", "b")
            for at in range(200):
                await b.put(f"o{at}", key=f"key-{at % 3}")
                await asyncio.sleep(60)
            assert not b.spool.dead()
            assert not any(batch.suspect for lane in b.forwarder._lanes for _, _, batch in lane.waiting._resting)

    run_virtually(main())


def test_events_past_their_age_become_dead_letters_while_the_host_is_down():
    async def main():
        async with bench(FakePoster(lambda _: Response(503)), age_seconds_max=3600) as b:
            await b.put("first")
            for at in range(10):
                await b.put(f"e{at}", key="other")
                await asyncio.sleep(600)
            await asyncio.sleep(700)
            expired = dead(b)
            assert {"e1", "e2", "e3", "e4"} <= set(expired)
            assert "e9" not in expired
            assert set(expired.values()) == {"expired"}

    run_virtually(main())


def test_what_waits_in_batches_composed_already_expires_in_time_too():
    """Behind a closed gate a batch is sent every few minutes; that hundreds are too old must not wait for that."""

    async def main():
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with bench(FakePoster(lambda _: Response(503)), age_seconds_max=7200) as b:
            b.forwarder.pause(1)
            for at in range(300):
                await b.put(f"e{at}", envelope=b'"u":%d' % (at // 2))
            b.forwarder.resume(1)
            await asyncio.sleep(3600)
            for at in range(300, 310):
                await b.put(f"e{at}", envelope=b'"u":149')
            assert len(b.spool.leased()) >= 300
            await asyncio.sleep(begun + 7200 + 700 - loop.time())
            assert set(dead(b)) == {f"e{at}" for at in range(300)}
            assert set(dead(b).values()) == {"expired"}
            b.poster.answer = lambda _: YES
            await b.until_empty(400)
            assert Counter(b.poster.taken) == Counter(f"e{at}" for at in range(300, 310))

    run_virtually(main())


@pytest.mark.parametrize("step", [86400 * 365 * 50, 3600, 600])
def test_a_step_of_the_wall_clock_expires_nothing_that_has_not_waited(step):
    async def main():
        async with bench(FakePoster(lambda _: Response(503)), age_seconds_max=3600) as b:
            for at in range(5):
                await b.put(f"e{at}")
            await asyncio.sleep(60)
            b.wall.offset += step
            await asyncio.sleep(3000)
            assert not b.spool.dead()
            await asyncio.sleep(3600)
            assert b.spool.dead(), "by now they have waited long enough by any clock"

    run_virtually(main())


def test_age_zero_means_never():
    async def main():
        async with bench(FakePoster(lambda _: Response(503)), age_seconds_max=0) as b:
            await b.put("a")
            await asyncio.sleep(86400 * 20)
            assert not b.spool.dead()

    run_virtually(main())
