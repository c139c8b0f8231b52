from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

from fakes.poster import FakePoster
from fakes.relay import FAR, bench, record
from fakes.time import run_virtually

from relay.forwarder.body import BATCH_ID_HEADER
from relay.forwarder.lanes import COALESCE_SECONDS


def names(count: int, prefix: str = "e") -> list[str]:
    return [f"{prefix}{at}" for at in range(count)]


def test_the_first_event_after_a_silence_goes_at_once():
    async def main():
        async with bench() as b:
            for at in range(3):
                began = asyncio.get_running_loop().time()
                await b.put(f"e{at}")
                await b.until_empty(1)
                assert b.poster.posts[-1].at - began < 0.001
                await asyncio.sleep(30)
            assert b.poster.taken == names(3)
            assert b.observer.attempts == {"success": 3}
            assert b.observer.delivered == 3

    run_virtually(main())


def test_single_event_callers_share_posts_under_steady_load():
    async def main():
        async with bench() as b:
            for at in range(1000):
                await b.put(f"e{at}")
                await asyncio.sleep(0.001)
            await b.until_empty(1)
            assert sorted(b.poster.taken) == sorted(names(1000))
            assert len(b.poster.posts) <= 1 / COALESCE_SECONDS + 3
            times = [post.at for post in b.poster.posts]
            assert min(after - before for before, after in pairwise(times)) >= COALESCE_SECONDS * 0.99

    run_virtually(main())


def test_a_full_batch_does_not_wait():
    async def main():
        async with bench(batch_events_max=10) as b:
            await b.put("first")
            for at in range(100):
                await b.put(f"e{at}")
            await b.until_empty(1)
            assert [len(post.names) for post in b.poster.posts] == [1] + [10] * 10
            assert max(post.at for post in b.poster.posts) - b.poster.posts[0].at < COALESCE_SECONDS

    run_virtually(main())


def test_batches_are_filled_and_no_event_is_lost_between_leases():
    async def main():
        async with bench(batch_events_max=1000) as b:
            b.forwarder.pause(1)
            for at in range(20):
                await b.put(*names(400, f"{at}-"))
            b.forwarder.resume(1)
            await b.until_empty(5)
            assert sorted(b.poster.taken) == sorted(b.sent)
            assert [len(post.names) for post in b.poster.posts] == [800] * 10

    run_virtually(main())


def test_a_batch_keeps_to_the_bytes_of_its_text_not_to_what_it_takes_on_disk():
    async def main():
        async with bench(batch_bytes_max=50_000) as b:
            for at in range(20):
                await b.put(f"e{at}", padding=9_000)
            await b.until_empty(5)
            assert max(len(post.names) for post in b.poster.posts) == 5
            assert len(b.poster.posts) <= 6

    run_virtually(main())


def test_requests_that_differ_beside_their_events_never_share_a_post():
    async def main():
        async with bench() as b:
            for at in range(40):
                await b.put(f"{at % 4}-{at}", envelope=b'"user":{"userID":"%d"}' % (at % 4))
            await b.until_empty(5)
            for post in b.poster.posts:
                assert len({name[0] for name in post.names}) == 1
            assert len(b.poster.posts) < 12
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_no_more_requests_are_under_way_than_allowed():
    async def main():
        async with bench(FakePoster(seconds=1), in_flight_max=3, batch_events_max=1) as b:
            for at in range(30):
                await b.put(f"e{at}", key=f"key-{at % 5}")
            await b.until_empty(60)
            assert b.poster.in_flight_most == 3

    run_virtually(main())


def test_lanes_share_by_bytes_and_a_small_lane_does_not_queue_behind_a_big_one():
    async def main():
        async with bench(FakePoster(seconds=0.1), in_flight_max=1, batch_events_max=10) as b:
            big = [record(names(10, f"big{at}-"), at_ms=1_795_000_000_000, key="big", padding=500) for at in range(50)]
            b.sent += [f"big{at}-{i}" for at in range(50) for i in range(10)]
            await b.spool.append(big, deadline=FAR)
            await asyncio.sleep(0.55)
            began = asyncio.get_running_loop().time()
            await b.put("small", key="small")
            await b.until(lambda: "small" in b.poster.taken, 5)
            assert asyncio.get_running_loop().time() - began < 0.35
            await b.until_empty(60)

    run_virtually(main())


def test_two_busy_lanes_get_equal_bytes_whatever_the_size_of_their_chunks():
    async def main():
        async with bench(FakePoster(seconds=0.05), in_flight_max=1, batch_events_max=50) as b:
            for at in range(100):
                await b.put(*names(50, f"L{at}-"), key="large")
            for at in range(400):
                await b.put(*names(10, f"S{at}-"), key="small", envelope=b'"u":%d' % at)
            began = len(b.poster.posts)
            await asyncio.sleep(4)
            sent = Counter(name[0] for post in b.poster.posts[began:] for name in post.names)
            assert abs(sent["L"] - sent["S"]) <= 100 < sent["L"]
            await b.until_empty(600)

    run_virtually(main())


def test_a_lane_that_was_held_for_long_has_saved_up_no_claim():
    async def main():
        async with bench(FakePoster(seconds=0.05), in_flight_max=1, batch_events_max=10) as b:
            await b.put("H0", key="held")
            await b.until_empty(1)
            b.forwarder.pause(1)
            for at in range(200):
                await b.put(*(f"B{at}-{i}" for i in range(10)), key="busy")
                await b.put(*(f"H{at}-{i}" for i in range(10)), key="held")
            await asyncio.sleep(4)
            b.forwarder.resume(1)
            began = len(b.poster.posts)
            await asyncio.sleep(2)
            sent = Counter(name[0] for post in b.poster.posts[began:] for name in post.names)
            assert abs(sent["B"] - sent["H"]) <= 20 < sent["H"]
            await b.until_empty(600)

    run_virtually(main())


def test_bodies_read_ahead_stay_within_one_batch_over_all_lanes():
    async def main():
        async with bench(FakePoster(seconds=100), batch_bytes_max=20_000) as b:
            for lane in range(8):
                b.forwarder.pause(lane + 1)
                for at in range(60):
                    await b.put(f"{lane}-{at}", key=f"key-{lane}", envelope=b'"u":%d' % at, padding=300)
            for lane in range(8):
                b.forwarder.resume(lane + 1)
            await asyncio.sleep(50)
            waiting = [batch for lane in b.forwarder._lanes for _, _, batch in lane.waiting._resting]
            kept = sum(batch.stored_bytes for batch in waiting if batch.chunks is not None)
            assert 10_000 < kept <= 20_000
            b.poster.seconds = 0.01
            await b.until_empty(600)
            assert b.forwarder._kept_bytes == 0
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_the_key_of_requests_without_one_is_found_when_they_are_sent():
    async def main():
        keys = ["first"]
        async with bench(default_key=lambda: keys[-1]) as b:
            await b.put("a", key="")
            await b.until_empty(1)
            keys.append("second")
            await b.put("b", key="")
            await b.until_empty(1)
            assert [post.key for post in b.poster.posts] == ["first", "second"]

    run_virtually(main())


def test_without_a_key_the_default_lane_waits_parked_and_others_go_on():
    async def main():
        key: list[str] = []
        async with bench(default_key=lambda: key[0] if key else None, age_seconds_max=100) as b:
            await b.put("keyless", key="")
            await b.put("keyed")
            await b.until(lambda: b.poster.taken == ["keyed"], 1)
            await asyncio.sleep(3600)
            assert [row.ref.events for row in b.spool.queued()] == [1]
            (standing,) = b.forwarder.numbers().lanes.values()
            assert standing.state == "parked"
            key.append("late")
            await b.until_empty(61)
            assert b.poster.posts[-1].key == "late"

    run_virtually(main())


def test_a_new_key_is_tried_at_once():
    async def main():
        key: list[str] = []
        async with bench(default_key=lambda: key[0] if key else None) as b:
            await b.put("keyless", key="")
            await asyncio.sleep(5)
            key.append("new")
            b.forwarder.key_changed()
            await b.until_empty(1)

    run_virtually(main())


def test_the_operators_ceiling_holds_over_any_second():
    async def main():
        async with bench(batch_events_max=10, events_per_second_max=50) as b:
            for at in range(60):
                await b.put(*names(10, f"{at}-"))
            await b.until_empty(60)
            for post in b.poster.posts:
                window = sum(len(p.names) for p in b.poster.posts if post.at <= p.at < post.at + 1)
                assert window <= 60
            assert 10 < b.poster.posts[-1].at - b.poster.posts[0].at < 13

    run_virtually(main())


def test_the_ceiling_counts_what_is_sent_not_what_was_leased_with_it():
    async def main():
        async with bench(events_per_second_max=50) as b:
            for at in range(100):
                await b.put(f"e{at}", envelope=b'"u":%d' % at)
            await b.until_empty(60)
            assert 1.8 < b.poster.posts[-1].at - b.poster.posts[0].at < 2.2

    run_virtually(main())


def test_what_lies_in_the_spool_at_the_start_is_delivered():
    async def main():
        async with bench() as first:
            first.forwarder.pause(1)
            await first.put(*names(5))
            left = first.spool.crash()
        async with bench(spool=left) as second:
            await second.until_empty(1)
            assert second.poster.taken == names(5)

    run_virtually(main())


def test_a_corrupt_chunk_is_set_aside_and_the_rest_arrives():
    async def main():
        async with bench() as b:
            b.forwarder.pause(1)
            for at in range(5):
                await b.put(f"e{at}")
            b.spool.corrupt(3)
            b.forwarder.resume(1)
            await b.until_empty(5)
            assert sorted(b.poster.taken) == ["e0", "e1", "e3", "e4"]
            assert [row.dead.reason for row in b.spool.dead()] == ["corrupt"]
            b.unreadable.add("e2")

    run_virtually(main())


def test_a_thousand_lanes_take_turns():
    async def main():
        async with bench(FakePoster(seconds=0.001)) as b:
            for at in range(1000):
                await b.put(f"e{at}", key=f"key-{at}")
            await b.until_empty(30)
            assert Counter(b.poster.taken) == Counter(b.sent)
            await asyncio.sleep(1)
            assert len(b.forwarder._lanes) == 0

    run_virtually(main())


def test_the_batch_id_names_what_travels():
    async def main():
        async with bench() as b:
            for _ in range(3):
                await b.put("same")
                await b.until_empty(1)
            assert len({post.headers[BATCH_ID_HEADER] for post in b.poster.posts}) == 3

    run_virtually(main())
