"""The stand-in upstream: what it takes, what it refuses, and what its command prints."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
import zstandard
from daemon.harness import envelope, free_port, make_event, post, wait_until
from hypothesis import example, given
from hypothesis import strategies as st

from relay.commands.sink import Failure, Received, Sink, one_line, parse_address, parse_delay, parse_failure
from relay.commands.witness import Unreadable, inflate, split_events
from relay.config import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = {"statsig-api-key": "secret-test"}
ODD = b'{"eventName":"\\ud83d","value":NaN,"n":[1,"]}",{"events":[2]}],"s":"\\\\\\"},{"}'


@asynccontextmanager
async def listening(**options: object) -> AsyncIterator[tuple[Sink, str, list[Received]]]:
    seen: list[Received] = []
    sink = Sink(seen.append, **options)
    url = await sink.start(Address("127.0.0.1", 0))
    yield sink, url, seen
    await sink.stop()


async def send(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, object]]:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=KEY | headers) as answer:
        return answer.status, await answer.json()


# ── reading a batch ──


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b'{"events":[{"a":1},{"b":[2,3]}]}', [b'{"a":1}', b'{"b":[2,3]}']),
        (b' { "user":{"events":[0]}, "events" : [ {"a": 1 } ,\n{"b":2} ] } ', [b'{"a": 1 }', b'{"b":2}']),
        (b'{"events":[' + ODD + b"," + ODD + b"]}", [ODD, ODD]),
        (b'{"user":{"events":[7]},"x":NaN,"events":[NaN,1e400,"x"]}', [b"NaN", b"1e400", b'"x"']),
        (b'{"events":[' + b"[" * 3000 + b"]" * 3000 + b"]}", [b"[" * 3000 + b"]" * 3000]),
    ],
)
def test_each_event_keeps_its_raw_bytes(body: bytes, events: list[bytes]) -> None:
    assert split_events(body) == events


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"events":[]}', b'{"events":{}}', b'{"events":[{"a":NaN}', b"x"])
def test_a_body_without_events_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        split_events(body)


TEXTS = st.text(alphabet='"\\[]{},: ev\n\ud83d', max_size=12)
LEAVES = st.floats() | TEXTS | st.integers() | st.none()
JSON_VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXTS, LEAVES, max_size=3)


@given(st.lists(JSON_VALUES, max_size=5))
@example([float("nan"), '"events":[', {"events": [1]}])
def test_what_json_writes_is_split_where_json_joined_it(values: list[object]) -> None:
    events = [json.dumps(value).encode() for value in values]
    body = b'{"note":"events","events":[' + b", ".join(events) + b'],"more":{}}'
    if events:
        assert split_events(body) == events
    else:
        with pytest.raises(Unreadable):
            split_events(body)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_compressed_body_must_be_one_whole_member(pack: object) -> None:
    name = "gzip" if pack is gzip.compress else "zstd"
    packed = pack(b'{"events":[1]}')
    assert inflate(packed, name) == b'{"events":[1]}'
    for broken in (packed[:-3], packed + packed, packed + b"x", b"{}"):
        with pytest.raises(Unreadable):
            inflate(broken, name)


def test_an_unknown_encoding_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="gzip, zstd, identity"):
        inflate(b"", "br")


# ── answering ──


async def test_a_batch_is_answered_as_statsig_does_and_recorded() -> None:
    async with listening() as (_, url, seen):
        body = gzip.compress(b'{"events":[{"eventName": "a"},' + ODD + b"]}")
        assert await send(url, body, **{"Content-Encoding": "gzip"}) == (202, {"success": True})
    assert [received.events for received in seen] == [(b'{"eventName": "a"}', ODD)]
    assert seen[0].header("statsig-api-key") == "secret-test"


async def test_a_body_that_does_not_match_its_encoding_is_refused() -> None:
    async with listening() as (_, url, seen):
        status, answer = await send(url, b'{"events":[1]}', **{"Content-Encoding": "gzip"})
    assert (status, answer["success"]) == (400, False)
    assert seen[0].events == ()


async def test_a_request_without_a_key_is_refused() -> None:
    async with (
        listening() as (_, url, _seen),
        aiohttp.ClientSession() as session,
        session.post(url, data=b'{"events":[1]}') as answer,
    ):
        assert answer.status == 401


async def test_the_share_that_fails_is_spread_evenly() -> None:
    async with listening(failure=Failure(503, 0.3)) as (_, url, _seen):
        statuses = [(await send(url, b'{"events":[1]}'))[0] for _ in range(10)]
    assert [n for n, status in enumerate(statuses, 1) if status == 503] == [4, 7, 10]


@given(st.floats(0.01, 1), st.integers(1, 500))
def test_the_share_is_met_within_one_request(share: float, requests: int) -> None:
    failed = sum(Failure(503, share).strikes(n) for n in range(1, requests + 1))
    assert abs(failed - share * requests) <= 1


async def test_what_is_held_is_answered_on_release_only() -> None:
    async with listening() as (sink, url, seen):
        sink.hold()
        answer = asyncio.create_task(send(url, b'{"events":[1]}'))
        await asyncio.sleep(0.1)
        assert not answer.done()
        assert seen == []
        sink.release()
        assert (await answer)[0] == 202


async def test_an_answer_waits_for_the_delay() -> None:
    async with listening(delay_seconds=0.2) as (_, url, _seen):
        start = asyncio.get_running_loop().time()
        await send(url, b'{"events":[1]}')
        assert asyncio.get_running_loop().time() - start >= 0.2


# ── arguments ──


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:80", Address("::1", 80, ipv6=True)),
        (":80", Address("127.0.0.1", 80)),
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "80", "localhost", "localhost:http", "localhost:65536", "::1:80", "unix:/x"])
def test_a_wrong_address_says_what_is_expected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give host:port"):
        parse_address(text)


@pytest.mark.parametrize("text", ["", "x", "99", "600", "503:", "503:0", "503:1.1", "503:nan", "503:x"])
def test_a_wrong_failure_says_what_is_expected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give STATUS or STATUS:SHARE"):
        parse_failure(text)


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf"])
def test_a_wrong_delay_says_what_is_expected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seconds from 0 up"):
        parse_delay(text)


# ── the command ──


def test_the_command_prints_each_event_on_one_line_with_its_bytes_unchanged(tmp_path: Path) -> None:
    port = free_port()
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-m", "relay", "sink", "--address", f"127.0.0.1:{port}"]
        sink = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        wait_until("the sink listens", lambda: b"listening" in err.read_bytes())
        first, spread = make_event("a", 1), b'{"eventName":\n"b"}'
        answer = post(f"http://127.0.0.1:{port}/v1/log_event", envelope([first, ODD, spread]), KEY)
        sink.send_signal(signal.SIGTERM)
        assert sink.wait(10) == 0
    finally:
        sink.kill()
        sink.wait()
    assert answer.accepted
    assert out.read_bytes().splitlines() == [first, ODD, one_line(spread)]
    assert json.loads(one_line(spread)) == json.loads(spread)
    assert "202 /v1/log_event events=3" in err.read_text()


def test_an_address_in_use_ends_the_command_with_what_to_do() -> None:
    taken = free_port()
    command = [sys.executable, "-m", "relay", "sink", "--address", f"127.0.0.1:{taken}"]
    with socket.create_server(("127.0.0.1", taken)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in done.stderr
    assert "--address" in done.stderr


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    port = free_port()
    command = [sys.executable, "-m", "relay", "sink", "--address", f"127.0.0.1:{port}"]
    sink = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert sink.stdout
    assert sink.stderr
    try:
        sink.stderr.readline()
        sink.stdout.close()
        post(f"http://127.0.0.1:{port}/v1/log_event", b'{"events":[1]}', KEY)
        assert sink.wait(10) == 141
        assert b"Traceback" not in sink.stderr.read()
    finally:
        sink.kill()
        sink.wait()
        sink.stderr.close()
