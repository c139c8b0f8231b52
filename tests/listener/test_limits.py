"""Absolute caps: each with its own error that names its key, nothing kept past one, everything taken up to it."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from listener.house import BODY, CHUNKED, EVENT, House, chunked, events_of, open_house, post
from structlog.testing import capture_logs

BIG_EVENT = b'{"eventName":"a","time":1,"value":"' + b"x" * 3000 + b'"}'
CASES = {
    "request_bytes_max": b'{"events":[' + BIG_EVENT + b"]}",
    "inflated_bytes_max": gzip.compress(b'{"events":[' + BIG_EVENT + b"]}"),
    "event_bytes_max": b'{"events":[' + BIG_EVENT + b"]}",
    "events_per_request_max": events_of(*(f"e{n}" for n in range(40)))[0],
    "envelope_bytes_max": b'{"events":[' + EVENT + b'],"user":' + json.dumps({"x": "y" * 2000}).encode() + b"}",
}
CAPS = dict.fromkeys(CASES, 1024) | {"events_per_request_max": 39}


@pytest.mark.parametrize("cap", CASES)
async def test_past_a_cap_is_413_that_names_its_key_and_nothing_is_kept(tmp_path, short_way, cap):
    async with open_house(tmp_path, short_way=short_way, limits={cap: CAPS[cap]}) as house:
        for headers, body, length in (({}, CASES[cap], -1), (CHUNKED, chunked(CASES[cap]), None)):
            answer = await house.exchange(post(body, headers=headers, length=length))
            assert answer.status == 413
            code, message = answer.refusal()
            assert code == "too_large"
            assert f"listen.{cap}" in message
            assert str(CAPS[cap]) in message
        assert house.untouched()
        assert house.refused() == {"too_large": 2}
        assert (await house.post()).status == 202


@pytest.mark.parametrize("cap", CASES)
async def test_up_to_a_cap_everything_is_taken(tmp_path, short_way, cap):
    body = CASES[cap]
    exact = {
        "request_bytes_max": len(body),
        "inflated_bytes_max": len(CASES["request_bytes_max"]),
        "event_bytes_max": len(BIG_EVENT),
        "events_per_request_max": 40,
        "envelope_bytes_max": len(body) - len(b'{"events":[' + EVENT + b"],}"),
    }
    async with open_house(tmp_path, short_way=short_way, limits={cap: exact[cap]}) as house:
        assert (await house.post(body)).status == 202
    async with open_house(tmp_path, short_way=short_way, limits={cap: exact[cap] - 1}) as house:
        assert (await house.post(body)).status == 413


@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}])
async def test_a_length_past_the_cap_is_refused_before_any_of_the_body_is_sent(house: House, headers):
    async with house.client() as client:
        await client.send(post(b"", length=1 << 40, headers=headers))
        answer = await client.read(seconds=1)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"


async def test_a_client_that_goes_on_sending_still_reads_its_refusal(tmp_path):
    async with open_house(tmp_path, limits={"request_bytes_max": 1 << 20}) as house, house.client() as client:
        await client.send(post(b"", length=4 << 20))
        for _ in range(16):
            await client.send(b"x" * (1 << 18))
        assert (await client.read()).status == 413


async def test_chunks_without_end_are_cut_off_at_the_cap(tmp_path):
    async with open_house(tmp_path, limits={"request_bytes_max": 1 << 20}) as house, house.client() as client:
        await client.send(post(b"", headers=CHUNKED, length=None))
        sender = asyncio.create_task(_send_forever(client, b"10000\r\n" + b" " * 65536 + b"\r\n"))
        assert (await client.read()).status == 413
        assert await client.closed(4)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send_forever(client, data: bytes) -> None:
    while True:
        await client.send(data)
        await asyncio.sleep(0)


async def test_where_some_events_are_too_large_only_those_are_set_aside(tmp_path, short_way):
    async with open_house(tmp_path, short_way=short_way, limits={"event_bytes_max": 1024}) as house:
        answer = await house.post(b'{"events":[' + BIG_EVENT + b"," + EVENT + b"]}")
        assert answer.status == 202
        (rejected,) = answer.json["rejected"]
        assert rejected["index"] == 0
        assert "listen.event_bytes_max" in rejected["message"]
        assert house.spool.stats().dead_lettered_events == {"too_large": 1}
        assert await house.stored() == [EVENT]


# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MIB = 1 << 20


async def test_a_body_for_which_others_leave_no_room_is_503_and_fits_once_they_are_gone(tmp_path):
    body = b'{"events":[{"eventName":"a","time":1,"value":"' + b"x" * MIB + b'"}]}'
    async with open_house(tmp_path, limits={"memory_bytes_max": 4 * MIB}) as house, house.client() as other:
        await other.send(post(b"", length=2 * MIB) + b"x" * (2 * MIB - 1))
        await asyncio.sleep(0.1)
        assert house.door._memory.big_bytes > MIB
        answer = await house.post(body)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        code, message = answer.refusal()
        assert code == "memory_full"
        assert "listen.memory_bytes_max" in message
        assert (await house.post()).status == 202, "a small one still fits"
        other.reset()
        await asyncio.sleep(0.1)
        assert (await house.post(body)).status == 202


async def test_heads_that_announce_much_and_send_nothing_take_no_room(tmp_path):
    body = b'{"events":[{"eventName":"a","time":1,"value":"' + b"x" * MIB + b'"}]}'
    async with open_house(tmp_path, limits={"memory_bytes_max": 8 * MIB}) as house:
        idlers = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(10)]
        for _, writer in idlers:
            writer.write(post(b"", length=7 * MIB))
        await asyncio.sleep(0.1)
        assert (await house.post(body)).status == 202
        for _, writer in idlers:
            writer.close()


async def test_one_that_is_alone_may_hold_more_than_the_budget(tmp_path, short_way):
    body = b'{"events":[{"eventName":"a","time":1,"value":"' + b"x" * (3 * MIB) + b'"}]}'
    async with open_house(tmp_path, short_way=short_way, limits={"memory_bytes_max": MIB}) as house:
        for packed in (body, gzip.compress(body), zstandard.compress(body)):
            small = asyncio.create_task(house.post())
            assert (await house.post(packed)).status == 202
            assert (await small).status == 202
        assert len(await house.stored()) == 6


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("headers", [{}, CHUNKED])
async def test_a_body_that_takes_too_long_is_408_and_closed(tmp_path, headers):
    async with open_house(tmp_path, limits={"body_seconds_max": 0.3}) as house, house.client() as client:
        await client.send(post(b"", headers=headers, length=None if headers else 100))
        started = time.monotonic()
        answer = await client.read()
        assert 0.2 < time.monotonic() - started < 1.5
        assert answer.status == 408
        code, message = answer.refusal()
        assert code == "body_too_slow"
        assert "listen.body_seconds_max" in message
        assert answer.headers["connection"] == "close"
        assert await client.closed()
        assert house.untouched()
        assert house.observer.answer_seconds.sum < 0.1, "an answer's time counts from where the wait for the body ended"


async def test_a_body_that_trickles_is_held_to_the_same_bound(tmp_path):
    async with open_house(tmp_path, limits={"body_seconds_max": 0.3}) as house, house.client() as client:
        await client.send(post(b"", length=len(BODY)))
        for at in range(len(BODY)):
            await client.send(BODY[at : at + 1])
            await asyncio.sleep(0.02)
            if client.reader._buffer:
                break
        assert (await client.read()).status == 408


async def test_requests_wait_for_the_spool_to_open_and_are_503_where_it_takes_too_long(tmp_path, short_way):
    async with open_house(
        tmp_path, short_way=short_way, closed_spool=True, limits={"answer_seconds_max": 0.5}
    ) as house:
        started = time.monotonic()
        answer = await house.post()
        assert 0.4 < time.monotonic() - started < 1.5
        assert (answer.status, answer.refusal()[0]) == (503, "starting")
        waiting = asyncio.create_task(house.post())
        await asyncio.sleep(0.1)
        house.door.open_to(house.spool)
        assert (await waiting).status == 202
        assert house.refused() == {"disk_error": 1}


async def test_a_body_that_no_thread_finds_time_for_is_503_and_its_memory_is_held_until_the_thread_lets_go(tmp_path):
    body, _ = events_of(*(f"event-{n}" for n in range(4000)))
    async with open_house(tmp_path, limits={"answer_seconds_max": 0.4}) as house:
        decoders = house.door._intake._decoders
        gates = [decoders.submit(time.sleep, 1.0) for _ in range(2)]
        started = time.monotonic()
        answer = await house.post(body)
        assert 0.3 < time.monotonic() - started < 0.9
        assert (answer.status, answer.refusal()[0]) == (503, "busy")
        assert (await house.post()).status == 202, "a small one needs no thread"
        assert house.untouched() or house.spool.stats().enqueued_events == 1
        for gate in gates:
            await asyncio.wrap_future(gate)
        assert (await house.post(body)).status == 202


@pytest.mark.parametrize(
    "body",
    [
        b'{"events":[' + b",".join([b"1"] * 19_999) + b"]}",
        b'{"events":[' + b",".join([b"{}"] * 19_999) + b"]}",
        b'{"events":[' + b"[" * 30_000 + b"]" * 30_000 + b"]}",
        b'{"events":[{"eventName":"a"}],' + b",".join([b'"a":1'] * 10_000) + b"}",
        zstandard.compress(b'{"events":[' + b" " * (60 << 20) + b"]}"),
        gzip.compress(b'{"events":[' + b" " * (5 << 20) + b"]}", mtime=0),
    ],
)
async def test_a_small_body_made_to_cost_much_is_read_in_a_thread(tmp_path, body):
    """Each of these would hold the loop for 50 to 300 ms."""
    assert len(body) <= 64 * 1024
    decoders = CountingExecutor(2)
    async with open_house(tmp_path, decoders=decoders) as house:
        assert (await house.post(body)).status in {202, 400, 413}
        assert decoders.jobs


@pytest.mark.parametrize("events", [1, 10, 100, 300])
async def test_a_usual_body_is_read_on_the_loop(tmp_path, events):
    event = b'{"eventName":"purchase","value":"x","time":1790000000000,"user":{"userID":"u"},"metadata":{"page":"/a"}}'
    body = b'{"events":[' + b",".join([event] * events) + b'],"statsigMetadata":{"sdkType":"py"}}'
    decoders = CountingExecutor(2)
    async with open_house(tmp_path, decoders=decoders) as house:
        for packed in (body, gzip.compress(body), zstandard.compress(body)):
            assert (await house.post(packed)).status == 202
        assert not decoders.jobs


class CountingExecutor(ThreadPoolExecutor):
    """Counts what it is given."""

    jobs = 0

    def submit(self, *work, **given):
        self.jobs += 1
        return super().submit(*work, **given)


async def test_what_a_bomb_inflated_to_is_given_back_with_its_refusal(house: House):
    bomb = gzip.compress(b'{"events":[{"eventName":"a","x":"' + b"x" * (80 << 20))
    gc.collect()
    gc.disable()
    try:
        before = resident_bytes()
        for _ in range(8):
            assert (await house.post(bomb)).status == 413
        assert resident_bytes() - before < 100 << 20, "each holds 64 MiB while it is read"
    finally:
        gc.enable()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class LateExecutor(ThreadPoolExecutor):
    """Takes its time over everything."""

    def submit(self, work, /, *given, **more):
        return super().submit(lambda: (time.sleep(0.8), work(*given, **more))[1])


async def test_what_a_thread_still_reads_past_the_deadline_stays_reserved_until_it_ends(tmp_path):
    body, _ = events_of(*(f"event-{n}" for n in range(4000)))
    async with open_house(tmp_path, decoders=LateExecutor(2), limits={"answer_seconds_max": 0.3}) as house:
        answer = await house.post(body)
        assert (answer.status, answer.refusal()[0]) == (503, "busy")
        assert house.door._memory.held_bytes >= len(body)
        await asyncio.sleep(1)
        assert house.at_rest()
        assert house.untouched()


class BrokenSpool:
    """Has a bug."""

    def submit(self, *_: object, **__: object) -> None:
        raise RuntimeError("boom")

    async def append(self, *_: object, **__: object) -> None:
        raise RuntimeError("boom")


async def test_a_bug_of_ours_is_503_so_that_the_client_comes_back(tmp_path, short_way):
    async with open_house(tmp_path, short_way=short_way, closed_spool=True) as house:
        house.door.open_to(BrokenSpool())  # type: ignore[arg-type]
        with capture_logs() as lines:
            for _ in range(2):
                answer = await house.post()
                assert answer.status == 503
                assert answer.refusal()[0] == "internal_error"
                assert "boom" not in answer.refusal()[1]
        assert house.refused() == {"disk_error": 2}
        assert house.answered() == {503: 2}
        assert [line["event"] for line in lines] == ["ingest_failed"], "once a minute"


async def test_bodies_that_shrink_a_hundredfold_do_not_lock_each_other_out(tmp_path):
    body, events = events_of(*["checkout" for _ in range(60_000)])
    packed = gzip.compress(body)
    assert len(packed) * 100 < len(body) < 4 << 20
    limits = {"memory_bytes_max": 64 << 20, "inflated_bytes_max": 64 << 20, "events_per_request_max": 100_000}
    async with open_house(tmp_path, limits=limits) as house:
        headers = {"Content-Encoding": "gzip"}
        answers = await asyncio.gather(*[house.exchange(post(packed, headers=headers)) for _ in range(3)])
        assert [answer.status for answer in answers] == [202] * 3
        assert house.spool.stats().events == 3 * len(events)
