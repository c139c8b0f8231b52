from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest
from fakes.poster import YES, FakePoster, Post
from fakes.relay import bench
from fakes.time import run_virtually, seeded

from relay.errors import StoreFailed
from relay.forwarder.body import BATCH_ID_HEADER
from relay.forwarder.delivery import ConnectFailed, Malformed, Reset, Response, TimedOut

DOWN = [
    Response(500), Response(503), Response(408), ConnectFailed("refused"), TimedOut(sent=True, detail=""),
    TimedOut(sent=False, detail=""), Reset(sent=True, detail=""), Malformed(sent=False, detail=""),
]  # fmt: skip


def until(at: list[float], answer, then=YES):
    """Answer so until a time, then otherwise."""
    return lambda post: answer if post.at < at[0] else then


@pytest.mark.parametrize("answer", DOWN, ids=repr)
def test_an_outage_of_six_hours_loses_nothing_and_knocks_seldom(answer):
    async def main():
        loop = asyncio.get_running_loop()
        end = [loop.time() + 6 * 3600]
        async with bench(FakePoster(until(end, answer))) as b:
            for at in range(360):
                await b.put(f"e{at}")
                await asyncio.sleep(60)
            during = len(b.poster.posts)
            assert 6 * 12 <= during <= 6 * 12 * 5  # waits of 1 to 300 s, 150 on average
            assert b.forwarder.numbers().forward.gate_limit == 0
            await b.until_empty(301)
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_a_repeat_is_the_same_batch_with_the_same_id_and_its_count_of_retries():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(until([loop.time() + 40], Response(503)))) as b:
            await b.put("a", "b")
            await asyncio.sleep(0.01)
            await b.put("late")
            await b.until_empty(301)
            tries = [post for post in b.poster.posts if "a" in post.names]
            assert {tuple(post.names) for post in tries} == {("a", "b")}
            assert len({post.headers[BATCH_ID_HEADER] for post in tries}) == 1
            assert [post.headers["statsig-retry-count"] for post in tries] == [str(at) for at in range(len(tries))]
            assert len(tries) > 3

    run_virtually(main())


def test_waiting_batches_keep_no_bodies():
    async def main():
        async with bench(FakePoster(lambda _: Response(503)), batch_events_max=10) as b:
            for at in range(200):
                await b.put(*(f"{at}-{i}" for i in range(10)), padding=200, key=f"key-{at % 7}")
            await asyncio.sleep(900)
            waiting = [batch for lane in b.forwarder._lanes for batch in lane.waiting.clear()]
            assert len(waiting) > 3
            assert all(batch.chunks is None for batch in waiting)
            b.forwarder._leases.release_all()
            b.forwarder._lanes = type(b.forwarder._lanes)()

    run_virtually(main())


def test_every_client_time_is_right_after_hours_of_outage_the_drifted_clock_included():
    async def main():
        loop = asyncio.get_running_loop()
        end = [loop.time() + 6 * 3600]
        async with bench(FakePoster(until(end, Response(503)))) as b:
            skews = {"exact": 0, "late": 3_600_000, "early": -7_200_000, "none": None}
            for name, skew in skews.items():
                await b.put(name, skew_ms=skew)
            await b.until_empty(8 * 3600)
            for post in b.poster.posts:
                (name,) = post.names
                said, now_ms = post.headers.get("statsig-client-time"), (post.at + b.wall.offset) * 1000
                skew = skews[name]
                assert (said is None) if skew is None else abs(int(said) - (now_ms - skew)) < 1
            assert sorted(b.poster.taken) == sorted(skews)

    run_virtually(main())


def test_a_step_of_the_wall_clock_neither_stalls_nor_hurries_a_retry():
    async def main():
        loop = asyncio.get_running_loop()
        end = [loop.time() + 3600]
        async with bench(FakePoster(until(end, Response(503)))) as b:
            await b.put("a")
            for step in (86400 * 400, -86400 * 800, 86400 * 30):
                before = len(b.poster.posts)
                b.wall.offset += step
                await asyncio.sleep(1200)
                assert 4 <= len(b.poster.posts) - before <= 60
            await b.until_empty(301)

    run_virtually(main())


@pytest.mark.parametrize("status", [503, 429, 401, 404])
def test_retry_after_is_honoured_when_it_is_longer(status):
    async def main():
        loop = asyncio.get_running_loop()
        answers = itertools.chain([Response(status, retry_after="120")], itertools.repeat(YES))
        async with bench(FakePoster(lambda _: next(answers))) as b:
            began = loop.time()
            await b.put("a")
            await asyncio.sleep(60)
            await b.put("b")
            await b.until_empty(200)
            assert [round(post.at - began) for post in b.poster.posts][:2] == [0, 120]

    run_virtually(main())


def test_a_lane_told_to_slow_down_does_not_slow_the_others():
    async def main():
        def answer(post: Post):
            return Response(429) if post.key == "greedy" and len(greedy) < 12 and not greedy.append(1) else YES

        greedy: list[int] = []
        async with bench(FakePoster(answer)) as b:
            for at in range(600):
                await b.put(f"g{at}", key="greedy")
                await b.put(f"o{at}", key="other")
                await asyncio.sleep(1)
                if at == 30:
                    assert {standing.state for standing in b.forwarder.numbers().lanes.values()} == {"backing_off"}
                    assert b.forwarder.is_held_back(1)
                    assert not b.forwarder.is_held_back(2)
            await b.until_empty(600)
            others = [delay for delay, _ in b.observer.delays]
            assert sum(delay < 0.2 for delay in others) >= 600
            assert b.observer.attempts["retryable"] == 12
            assert b.forwarder.numbers().forward.gate_limit == 8

    run_virtually(main())


def test_a_status_nobody_has_thought_of_drops_nothing_and_lets_the_lanes_other_batches_pass():
    async def main():
        async with bench(FakePoster(lambda post: Response(431) if "odd" in post.names else YES)) as b:
            await b.put("odd", envelope=b'"user":1')
            for at in range(30):
                await b.put(f"e{at}")
                await asyncio.sleep(1)
            await asyncio.sleep(60)
            assert len(b.poster.taken) == 30
            assert [row.ref.events for row in b.spool.queued()] == [1]

    run_virtually(main())


def test_one_key_refused_among_a_hundred_delays_no_other_and_heals_by_itself():
    async def main():
        healed: list[bool] = []
        poster = FakePoster(lambda post: Response(401) if post.key == "key-7" and not healed else YES)
        async with bench(poster, age_seconds_max=1800) as b:
            for second in range(60):
                for key in range(100):
                    await b.put(f"{key}-{second}", key=f"key-{key}")
                await asyncio.sleep(1)
            await asyncio.sleep(3600)
            assert len(b.spool.queued()) == 60, "never expired while parked"
            refused = [post for post in b.poster.posts if post.key == "key-7"]
            assert 55 <= len(refused) <= 65, "one probe a minute"
            assert all(len(post.names) == 1 for post in refused[1:]), "a probe is a single chunk"
            delays = sorted(delay for delay, _ in b.observer.delays)
            assert delays[int(len(delays) * 0.99)] < 0.5
            healed.append(True)
            await b.until_empty(61)
            assert Counter(b.poster.taken) == Counter(b.sent)
            assert not b.forwarder.numbers().lanes

    run_virtually(main())


def test_a_refused_key_is_probed_with_one_chunk_though_a_whole_batch_was_refused():
    async def main():
        async with bench(FakePoster(lambda _: Response(401))) as b:
            b.forwarder.pause(1)
            for name in "abcde":
                await b.put(name)
            b.forwarder.resume(1)
            await asyncio.sleep(600)
            assert [len(post.names) for post in b.poster.posts] == [5] + [1] * (len(b.poster.posts) - 1)
            assert len({tuple(post.names) for post in b.poster.posts[1:]}) == 1, "it is always the same one"

    run_virtually(main())


def test_a_lane_told_to_slow_down_comes_back_with_one_request_at_a_time():
    async def main():
        loop = asyncio.get_running_loop()
        poster = FakePoster(until([loop.time() + 30], Response(429)), seconds=0.5)
        async with bench(poster, batch_events_max=1) as b:
            for at in range(40):
                await b.put(f"e{at}")
            await b.until_empty(600)
            first_yes = next(post.at for post in poster.posts if post.answer == YES)
            slow = [post.at for post in poster.posts[8:] if post.at <= first_yes]
            assert len(slow) >= 3
            assert all(after - before >= 0.5 for before, after in itertools.pairwise(slow))
            assert sum(post.at == first_yes + 0.5 for post in poster.posts) == 8

    run_virtually(main())


def test_parked_lanes_are_probed_one_at_a_time():
    async def main():
        most, now = [0], [0]

        def answer(_post: Post):
            return Response(403)

        class Counted(FakePoster):
            async def post(self, body, headers, *, seconds_max):
                now[0] += 1
                most[0] = max(most[0], now[0])
                try:
                    return await super().post(body, headers, seconds_max=seconds_max)
                finally:
                    now[0] -= 1

        async with bench(Counted(answer, seconds=0.5)) as b:
            for key in range(20):
                await b.put(f"e{key}", key=f"key-{key}")
            await asyncio.sleep(30)
            most[0] = 0
            await asyncio.sleep(600)
            assert most[0] == 1
            assert len(b.poster.posts) >= 20 * 8

    run_virtually(main())


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (Response(404), "misconfigured"),
        (Response(307), "misconfigured"),
        (Response(200, b"<html>"), "bad_answer"),
        (Response(202, b'{"success":false}'), "bad_answer"),
    ],
)
def test_an_answer_that_makes_no_sense_shuts_the_gate_and_risks_one_chunk_a_minute(answer, label):
    async def main():
        loop = asyncio.get_running_loop()
        end = [loop.time() + 3600]
        async with bench(FakePoster(until(end, answer)), in_flight_max=2) as b:
            for name in "abcd":
                await b.put(name)
            for at in range(20):
                await b.put(f"e{at}")
                await b.put(f"o{at}", key="other")
                await asyncio.sleep(1)
            await asyncio.sleep(1800)
            during = [post for post in b.poster.posts if post.at < end[0]]
            assert 28 <= len(during) <= 34
            assert all(len(post.names) == 1 for post in during[4:])
            assert b.observer.attempts[label] == len(during)
            assert b.forwarder.numbers().forward.gate_limit == 0
            await asyncio.sleep(end[0] - loop.time())
            b.poster.taken.clear()
            await b.until_empty(3600)
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_a_probe_of_what_was_never_sent_is_a_single_chunk_too():
    async def main():
        async with bench(FakePoster(lambda _: Response(404))) as b:
            await b.put("a")
            await asyncio.sleep(1)
            for name in ("long-name", "b", "other-long-name"):
                await b.put(name, key="other")
            await asyncio.sleep(300)
            assert ["b"] in [post.names for post in b.poster.posts]
            assert all(len(post.names) == 1 for post in b.poster.posts)

    run_virtually(main())


def test_a_lone_failing_batch_does_not_hold_up_a_fresh_one():
    async def main():
        loop = asyncio.get_running_loop()
        async with bench(FakePoster(lambda post: Response(500) if "bad" in post.names else YES)) as b:
            await b.put("bad")
            await asyncio.sleep(1200)
            assert b.forwarder.numbers().forward.gate_limit == 0
            began = loop.time()
            await b.put("good", key="another")
            await b.until(lambda: b.poster.taken == ["good"], 1)
            assert loop.time() - began < 0.1

    run_virtually(main())


def test_a_host_that_fails_every_other_request_still_gets_everything():
    async def main():
        draw = seeded(5).random
        async with bench(FakePoster(lambda _: YES if draw() < 0.5 else Response(503))) as b:
            for at in range(400):
                await b.put(f"e{at}", key=f"key-{at % 9}")
                await asyncio.sleep(0.3)
            await b.until_empty(7200)
            assert Counter(b.poster.taken) == Counter(b.sent)
            assert not b.spool.dead()

    run_virtually(main())


def test_after_an_outage_requests_keep_the_usual_pace_and_batches_grow():
    async def main():
        loop = asyncio.get_running_loop()
        start = loop.time()
        down = (start + 3600, start + 3600 * 3)
        async with bench(FakePoster(lambda post: Response(503) if down[0] < post.at < down[1] else YES)) as b:
            for at in range(3600 * 4 // 10):
                await b.put(*(f"{at}-{i}" for i in range(20)))
                await asyncio.sleep(10)
            after = [post for post in b.poster.posts if post.at > down[1] and post.answer == YES]
            for post in after:
                assert sum(post.at <= other.at < post.at + 100 for other in after) <= 13
            assert max(len(post.names) for post in after) == 1000
            assert max(post.at for post in after if len(post.names) > 20) < down[1] + 300 + 25 * 10
            await b.until_empty(60)
            assert Counter(b.poster.taken) == Counter(b.sent)

    run_virtually(main())


def test_a_disk_that_cannot_be_read_for_a_while_loses_nothing():
    async def main():
        async with bench() as b:
            broken = [True]
            b.spool.fail = lambda verb: StoreFailed("I/O error") if broken[0] and verb == "read" else None
            await b.put("a")
            await b.put("b", key="other")
            await asyncio.sleep(30)
            assert not b.poster.posts
            broken[0] = False
            await b.until_empty(65)

    run_virtually(main())


def plotted(limits: list[int]) -> list[str]:
    """Draw the gate's limit over time, a column each."""
    top = max(limits)
    return [f"{level:>2} " + "".join("█" if limit >= level else " " for limit in limits) for level in range(top, 0, -1)]


def test_the_gate_closes_in_an_outage_knocks_now_and_then_and_opens_step_by_step(figure):
    async def main():
        loop = asyncio.get_running_loop()
        down, up = loop.time() + 300, loop.time() + 300 + 1200
        poster = FakePoster(lambda post: Response(503) if down <= post.at < up else YES)
        async with bench(poster, retry_seconds_max=60) as b:
            limits = []
            for at in range(120):
                limits.append(b.forwarder.numbers().forward.gate_limit)
                for second in range(4):
                    await b.put(f"{at}-{second}")
                    await asyncio.sleep(3.75)
            figure("the gate's limit, 15 s a column; an outage from 5 to 25 min:")
            for line in [*plotted(limits), "   " + "└───" * 30]:
                figure(line)
            assert set(limits[:20]) == {8}
            assert set(limits[22:100]) == {0}
            assert 20 <= sum(down + 30 <= post.at < up for post in poster.posts) <= 60, "a knock in 60 s at the latest"
            rise = limits[104:]
            assert rise == sorted(rise)
            assert (rise[0], rise[-1]) != (8, 0)
            assert len(set(rise)) >= 5, "one more at a time"
            await b.until_empty(60)

    run_virtually(main())


def test_an_outage_at_dawn_is_caught_up_though_by_day_more_comes_in_than_went_out_by_night(figure):
    """The usual pace was learned while little happened, and the batches cannot grow: they are full already."""

    async def main():
        loop = asyncio.get_running_loop()
        dawn, day = loop.time() + 1800, loop.time() + 3600
        poster = FakePoster(lambda post: Response(503) if dawn <= post.at < day else YES)
        async with bench(poster, batch_events_max=10) as b:
            for at in range(5 * 360):
                for flush in range(1 if loop.time() < dawn else 5):
                    await b.put(*(f"{at}-{flush}-{i}" for i in range(10)))
                await asyncio.sleep(10)
            await b.until_empty(60)
            assert Counter(b.poster.taken) == Counter(b.sent)
            late = [post.at for post in poster.posts if post.answer == YES and int(post.names[0].split("-")[0]) < 360]
            figure(
                f"half an hour of outage, five times the usual load, full batches: caught up in {max(late) - day:.0f} s"
            )
            assert max(late) - day < 3 * 3600

    run_virtually(main())
