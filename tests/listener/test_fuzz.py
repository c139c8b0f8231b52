"""Whatever is sent: no answer but the documented ones, what was answered 202 is in the spool, what was not is nowhere.

`pytest tests/listener/test_fuzz.py --hypothesis-profile thorough` runs a hundred thousand cases of each kind.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from daemon.harness import captured_requests, seeded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from listener.house import Answer, House, chunked, head, open_house

from relay import wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

CAPTURES = captured_requests(Path(__file__).parent.parent / "captures")
STATUSES = {202, 204, 400, 401, 403, 404, 405, 408, 413, 415, 503}
PER_PROFILE = 8
"""Cases for each example the profile asks for: they are quick."""
CASES = settings(
    max_examples=PER_PROFILE * settings.default.max_examples,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


class Bench:
    """A door that stays open over all cases of a test, and what it has stored since the last look."""

    def __init__(self, runner: asyncio.Runner, house: House) -> None:
        self._runner = runner
        self.house = house
        self.accepted = 0

    def send(self, data: bytes) -> list[Answer]:
        """Send all, then no more; give every answer up to the close, which must come within seconds."""
        return self._runner.run(self._send(data))

    async def _send(self, data: bytes) -> list[Answer]:
        answers: list[Answer] = []
        async with self.house.client() as client:
            try:
                await client.send(data)
                client.writer.write_eof()
                while not await _ended(client.reader):
                    answers.append(await client.read(seconds=7))
            except ConnectionError:
                pass  # cut off while sending: no answer, and the books must be right all the same
        for _ in range(200):
            if self.house.at_rest():
                break
            await asyncio.sleep(0.001)
        return [answer for answer in answers if answer.status != 100]

    def look(self) -> tuple[list[bytes], int]:
        """Give the events stored since the last look, and how many were set aside; check them against the counters."""
        stored = self._runner.run(self.house.stored())
        accepted, self.accepted = (
            self.house.observer.accepted_events - self.accepted,
            self.house.observer.accepted_events,
        )
        return stored, accepted - len(stored)


async def _ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(7):
        while not reader._buffer and not reader._eof:
            await reader._wait_for_data("probe")
    return not reader._buffer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    small = {"request_bytes_max": 1 << 20, "inflated_bytes_max": 2 << 20, "event_bytes_max": 100_000}
    with asyncio.Runner() as runner:
        rooms = AsyncExitStack()
        settings_ = {"limits": {**small, "envelope_bytes_max": 4096}, "cors_origins": ["http://page"]}
        house = runner.run(
            rooms.enter_async_context(open_house(tmp_path_factory.mktemp("fuzz"), suppress_resends=False, **settings_))
        )
        try:
            yield Bench(runner, house)
        finally:
            runner.run(rooms.aclose())


def check_answers(answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.status in STATUSES, answer
        assert answer.headers["server"] == "event-relay"
        if answer.status == 202:
            assert answer.json["success"] is True
        elif answer.status != 204:
            code, message = answer.refusal()
            assert code
            assert message
        assert ("retry-after" in answer.headers) == (answer.status == 503)


# ── bodies × headers × queries ─────────────────────────────────────────────────────────────────────────────────────

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
NAMED = st.builds(
    lambda name, more: {**more, "eventName": name},
    st.text(min_size=1, max_size=12),
    st.dictionaries(st.sampled_from(["value", "time", "user", "metadata", "x", "statsigMetadata"]), JSONS, max_size=4),
)
ANYTHING = NAMED | JSONS | st.just({"eventName": ""}) | st.just({"eventName": 7})
RAW = st.builds(
    lambda value, ascii_: json.dumps(value, ensure_ascii=ascii_).encode("utf-8", "surrogatepass"),
    ANYTHING,
    st.booleans(),
)
BODIES = st.builds(
    lambda events, beside, gap: b'{%b"events":%b[%b]%b}' % (gap, gap, (b"," + gap).join(events), beside),
    st.lists(RAW, max_size=8),
    st.sampled_from(
        [
            b"",
            b',"user":{"userID":"u","privateAttributes":{"a":1}}',
            b',"statsigMetadata":{}',
            b',"events":[]',
            b',"x":',
            b" ",
        ]
    ),
    st.sampled_from([b"", b" ", b"\n\t"]),
)
PACKED = {
    "plain": lambda body: body,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
    "two members": lambda body: gzip.compress(body[:7]) + gzip.compress(body[7:]),
    "cut short": lambda body: gzip.compress(body)[:-3],
}
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *(
                "statsig-api-key",
                "statsig-client-time",
                "statsig-sdk-type",
                "statsig-event-count",
                "statsig-retry-count",
            ),
            *("Content-Encoding", "Content-Type", "X-Request-Id", "Origin", "Expect", "Cookie", "Accept", "Connection"),
            *("statsig-server-session-id", "User-Agent", "Access-Control-Request-Method", "Upgrade"),
        ]
    ),
    st.sampled_from(["1795000000000", "gzip", "zstd", "br", "http://page", "100-continue", "close", "secret-k", "1"])
    | TEXTS,
    max_size=6,
)
QUERIES = st.sampled_from(
    ["", "?", "?k=client-k", "?gz=1", "?k=a%00b", "?t=17e400&sv=%ff", "?" + "a=b&" * 70]
) | st.builds(lambda text: "?" + text, st.text("abkgz019&=%+;~!", max_size=20))


@CASES
@given(
    body=BODIES | st.binary(max_size=200),
    packing=st.sampled_from(sorted(PACKED)),
    headers=HEADERS,
    query=QUERIES,
    in_chunks=st.booleans(),
    method=st.sampled_from(["POST"] * 8 + ["OPTIONS", "PUT"]),
)
@example(b"", "plain", {"Origin": "http://\xff"}, "", False, "OPTIONS")
@example(b"{}", "plain", {"X-Request-Id": "\xff"}, "?%", True, "POST")
def test_any_request_is_answered_as_documented_and_kept_exactly_or_not_at_all(  # noqa: PLR0917 - hypothesis names them
    bench, body, packing, headers, query, in_chunks, method
):
    packed = PACKED[packing](body)
    fields = {"Host": "relay", **headers}
    if in_chunks:
        data = head(method, "/v1/rgstr" + query, {**fields, "Transfer-Encoding": "chunked"}) + chunked(
            packed[:5] or b"{", packed[5:] or b" "
        )
    else:
        data = head(method, "/v1/rgstr" + query, {**fields, "Content-Length": str(len(packed))}) + packed
    answers = bench.send(data)
    check_answers(answers)
    stored, dead = bench.look()
    assert len(answers) == 1
    (answer,) = answers
    if answer.status == 202:
        check_kept(body, stored, dead, answer)
    else:
        assert not stored
        assert not dead


def check_kept(body: bytes, stored: list[bytes], dead: int, answer: Answer) -> None:
    """Hold what was stored to what Python's own json reads in the body."""
    sent = json.loads(body, object_pairs_hook=list)
    (events,) = (value for name, value in sent if name == "events")
    usable = [event for event in events if _name_of(event)]
    assert len(stored) == len(usable)
    assert dead == len(events) - len(usable)
    assert [one["index"] for one in answer.json.get("rejected", [])] == [
        at for at, event in enumerate(events) if not _name_of(event)
    ]
    for raw, event in zip(stored, usable, strict=True):
        if any(name == "time" and value is not None for name, value in event) and b"privateAttributes" not in body:
            assert raw in body
        assert dict(json.loads(raw, object_pairs_hook=list))["eventName"] == dict(event)["eventName"]


def _name_of(event: object) -> str:
    if not isinstance(event, list) or not all(isinstance(member, tuple) for member in event) or not event:
        return ""
    name = dict(event).get("eventName")
    return name if isinstance(name, str) else ""


# ── bytes on the wire ──────────────────────────────────────────────────────────────────────────────────────────────


def recorded(request: dict) -> bytes:
    query = f"?{request['query_string']}" if request.get("query_string") else ""
    body = base64.b64decode(request["body_base64"])
    skipped = {"host", "content-length", "transfer-encoding", "connection", "expect"}
    fields = {name: value for name, value in dict(request["headers"]).items() if name.lower() not in skipped}
    return head("POST", request["path"] + query, {"Host": "relay", **fields, "Content-Length": str(len(body))}) + body


RECORDED = [recorded(request) for _, request in CAPTURES]
MUTATIONS = (
    lambda data, at, to, _: data[:at] + data[to:],
    lambda data, at, to, _: data[:to] + data[at:to] + data[to:],
    lambda data, at, _, chance: data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
    lambda data, at, _, chance: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
    lambda data, at, _, chance: data[:at] + chance.choice(SPLICED) + data[at:],
    lambda data, _, to, __: data[:to],
    lambda data, at, _, chance: data[:at] + chance.choice(RECORDED)[-at:],
    lambda data, _, __, chance: data + chance.choice(RECORDED),
)
SPLICED = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b": ",
        b"chunked",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n",
    ),
    *(b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0", b"Connection: close\r\n", b"0\r\n\r\n"),
    *(b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Content-Encoding: gzip\r\n", b"Origin: http://x\r\n", b"%00"),
    *(b"\xff\xfe", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'"events":[', b"NaN", b"\\ud800"),
)


def mutate(chance: Random) -> bytes:
    data = chance.choice(RECORDED)
    until = data.index(b"\r\n\r\n") + 4
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        end = len(data) if chance.random() < 0.4 else min(until, len(data))
        at = chance.randrange(max(1, end))
        data = chance.choice(MUTATIONS)(data, min(at, len(data) - 1), at + chance.randrange(1, 40), chance) or b"x"
    return data


@CASES
@given(seed=st.integers(0, 2**40))
def test_any_bytes_on_the_wire_are_answered_as_documented_or_cut_off(bench, seed):
    data = mutate(seeded(seed))
    answers = bench.send(data)
    check_answers(answers)
    stored, dead = bench.look()
    assert bench.house.at_rest()
    if answers and not any(answer.status == 202 for answer in answers):
        assert not stored, "stored and not acknowledged, though the client could read its answers"
    for event in stored:
        assert wire.split_events(event) == [event]
    assert dead >= 0


def test_the_cases_reach_every_kind_of_answer(bench):
    """Runs behind the others: fuzzing that is always refused at the first check proves little."""
    reached = bench.house.answered()
    assert {202, 204, 400, 403, 404, 405, 415} <= set(reached), reached
    assert reached[202] * 5 > reached[400], reached
