"""Every odd thing HTTP allows, and what HTTP forbids: who is answered what, and what is kept of it."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib

import pytest
import zstandard
from listener.house import BODY, CHUNKED, EVENT, House, chunked, events_of, head, open_house, post

HOST = {"Host": "relay"}
WITH_KEY = {**HOST, "statsig-api-key": "secret-a"}


async def test_the_reference_call_is_answered_202_and_its_event_kept_byte_for_byte(house: House):
    answer = await house.post()
    assert (answer.status, answer.json) == (202, {"success": True})
    assert answer.headers["content-type"] == "application/json"
    assert await house.stored() == [EVENT]
    assert house.answered() == {202: 1}
    assert house.observer.accepted_events == 1
    assert house.observer.accepted_bytes == len(EVENT)


async def test_no_answer_tells_what_the_relay_is_built_on(house: House):
    for request in (
        post(),
        post(b"[]"),
        b"nonsense\r\n\r\n",
        head("GET", "/", HOST),
        head("OPTIONS", "/v1/rgstr", HOST),
    ):
        server = (await house.exchange(request)).headers["server"]
        assert server == "event-relay"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
async def test_other_methods_get_405_with_allow_and_cost_no_events(house: House, method):
    answer = await house.exchange(head(method, "/v1/log_event", HOST), head_only=method == "HEAD")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST, OPTIONS"
    if method != "HEAD":
        assert answer.refusal()[0] == "method_not_allowed"
    assert house.answered() == {405: 1}
    assert not house.refused(), "a health check that GETs is no lost event"


async def test_the_answer_to_head_has_no_body_so_the_next_one_is_understood(house: House):
    async with house.client() as client:
        await client.send(head("HEAD", "/v1/log_event", HOST) + post())
        assert (await client.read(head_only=True)).status == 405
        assert (await client.read()).status == 202


@pytest.mark.parametrize("path", ["/v1/log_event", "/v1//rgstr/", "*"])
async def test_options_is_answered_204_with_allow(house: House, path):
    answer = await house.exchange(head("OPTIONS", path, HOST))
    assert answer.status == 204
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/log_event",
        "/v1/log_event/",
        "//v1//log_event",
        "/v1/log_event///",
        "/v1/rgstr?x=1",
        "/v1/log%5Fevent",
        "http://relay/v1/log_event",
        "http://elsewhere:99//v1/log_event/?x=1",
    ],
)
async def test_doubled_and_trailing_slashes_and_absolute_forms_are_forgiven(house: House, path):
    assert (await house.post(path=path)).status == 202


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/log_events", "/V1/LOG_EVENT", "/v1/log_event/x", "/v1/../v1/x", "/*"]
)
async def test_an_unknown_path_is_404_names_the_known_ones_and_counts_what_it_cost(house: House, path):
    answer = await house.post(path=path, headers={"statsig-event-count": "7"})
    assert answer.status == 404
    code, message = answer.refusal()
    assert code == "path_unknown"
    assert "/v1/log_event" in message
    assert "listen.paths" in message
    assert house.refused() == {"invalid": 7}
    assert house.untouched()


@pytest.mark.parametrize("claim", ["", "-1", "1e9", "٣", "999999", "x", "1 1"])
async def test_a_claim_of_events_that_cannot_be_believed_counts_as_one(house: House, claim):
    claimed = {"statsig-event-count": claim.encode().decode("latin-1")}
    assert (await house.post(b"[]", headers=claimed)).status == 400
    assert house.refused() == {"invalid": 1}


# ── Expect ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("word", ["100-continue", "100-Continue"])
async def test_who_expects_100_is_told_to_go_on_and_then_answered(house: House, word):
    async with house.client() as client:
        await client.send(post(b"", length=len(BODY), headers={"Expect": word}))
        assert (await client.read_head())[0] == 100
        await client.send(BODY)
        assert (await client.read()).status == 202
        await client.send(post())
        assert (await client.read()).status == 202, "the connection goes on"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (post(b"", length=(16 << 20) + 1, headers={"Expect": "100-continue"}), 413),
        (post(b"", length=9, path="/x", headers={"Expect": "100-continue"}), 404),
        (post(b"", length=9, headers={"Expect": "100-continue", "Origin": "http://evil"}), 403),
        (post(b"", length=9, key="clé", headers={"Expect": "100-continue"}), 401),
        (head("PUT", "/v1/rgstr", {**HOST, "Content-Length": "9", "Expect": "100-continue"}), 405),
    ],
)
async def test_what_the_head_already_refuses_is_never_asked_for(house: House, request_head, status):
    async with house.client() as client:
        await client.send(request_head)
        answer = await client.read()
        assert answer.status == status
        assert answer.headers["connection"] == "close", "the body that may follow must not be taken for a request"
        await client.send(post())
        assert await client.closed()
    assert house.untouched()


async def test_no_100_is_sent_where_the_body_came_along(house: House):
    assert (await house.post(headers={"Expect": "100-continue"})).status == 202


async def test_no_100_is_sent_to_http_1_0(house: House):
    async with house.client() as client:
        fields = {**WITH_KEY, "Content-Length": str(len(BODY)), "Expect": "100-continue"}
        await client.send(head("POST", "/v1/log_event", fields, "1.0"))
        await asyncio.sleep(0.05)
        await client.send(BODY)
        assert (await client.read()).status == 202


async def test_another_expectation_is_passed_over(house: House):
    assert (await house.post(headers={"Expect": "miracles"})).status == 202


# ── versions, pipelining, lengths, chunks ──────────────────────────────────────────────────────────────────────────


async def test_http_1_0_is_answered_and_closed(house: House):
    async with house.client() as client:
        await client.send(head("POST", "/v1/log_event", {**WITH_KEY, "Content-Length": str(len(BODY))}, "1.0") + BODY)
        assert (await client.read()).status == 202
        assert await client.closed()


async def test_http_1_0_with_keep_alive_goes_on(house: House):
    fields = {**WITH_KEY, "Content-Length": str(len(BODY)), "Connection": "keep-alive"}
    async with house.client() as client:
        for _ in range(3):
            await client.send(head("POST", "/v1/log_event", fields, "1.0") + BODY)
            answer = await client.read()
            assert (answer.status, answer.headers["connection"].lower()) == (202, "keep-alive")


async def test_who_says_close_is_closed(house: House):
    async with house.client() as client:
        await client.send(post(headers={"Connection": "close"}))
        assert (await client.read()).headers["connection"] == "close"
        assert await client.closed()


async def test_pipelined_requests_are_answered_in_order(house: House):
    bodies, kept = zip(*(events_of(f"e{n}") for n in range(60)), strict=True)
    requests = [post(body, headers={"X-Request-Id": f"r{n}"}) for n, body in enumerate(bodies)]
    requests[20:20] = [post(b"[]", headers={"X-Request-Id": "bad"}), head("GET", "/", {**HOST, "X-Request-Id": "get"})]
    async with house.client() as client:
        await client.send(b"".join(requests))
        answers = [await client.read() for _ in requests]
    ids = [f"r{n}" for n in range(60)]
    ids[20:20] = ["bad", "get"]
    assert [answer.headers["x-request-id"] for answer in answers] == ids
    assert [answer.status for answer in answers if answer.status != 202] == [400, 404]
    assert await house.stored() == [event for events in kept for event in events]


async def test_garbage_behind_a_request_is_refused_and_closed(house: House):
    async with house.client() as client:
        await client.send(post())
        assert (await client.read()).status == 202
        await client.send(b"garbage\r\n\r\n" + post())
        assert (await client.read()).refusal()[0] == "invalid_request"
        assert await client.closed()
    assert await house.stored() == [EVENT]


async def test_garbage_in_one_segment_with_a_request_is_refused_and_what_is_not_acknowledged_is_not_kept(
    house: House, short_way
):
    """The general way reads the segment as a whole, so there the request is lost with the garbage."""
    async with house.client() as client:
        await client.send(post() + b"garbage\r\n\r\n")
        if short_way:
            assert (await client.read()).status == 202
        assert (await client.read()).refusal()[0] == "invalid_request"
        assert await client.closed()
    assert await house.stored() == [EVENT] * short_way


async def test_an_empty_line_behind_a_body_is_forgiven(house: House):
    async with house.client() as client:
        for _ in range(3):
            await client.send(post() + b"\r\n")
            assert (await client.read()).status == 202


LENGTH = f"Content-Length: {len(BODY)}\r\n".encode()


@pytest.mark.parametrize(
    "fields",
    [
        LENGTH + b"Content-Length: 5\r\n",
        LENGTH + LENGTH,
        LENGTH + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n" + LENGTH,
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length: 0x10\r\n",
        b"Content Length: 5\r\n",
        b"Content-Length : 5\r\n",
        b"X: a\x00b\r\n" + LENGTH,
        b": empty\r\n" + LENGTH,
        b"X: a\r\n folded\r\n" + LENGTH,
        b"Host: again\r\n" + LENGTH,
    ],
)
async def test_lengths_that_conflict_and_headers_that_are_none_are_refused_and_closed(house: House, fields):
    async with house.client() as client:
        await client.send(b"POST /v1/log_event HTTP/1.1\r\nHost: relay\r\n" + fields + b"\r\n" + BODY)
        answer = await client.read()
        assert answer.status in {400, 413}
        answer.refusal()
        assert answer.headers["connection"] == "close"
        assert await client.closed()
    assert house.untouched()
    assert house.answered() == {answer.status: 1}


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\nGARBAGE",
        b"POST /v1/log_event HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /v1/log_event HTTP/1.1\r\n\r\n",
        b"FOO /v1/log_event HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST v1/log_event HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
    ],
)
async def test_what_is_no_http_is_answered_400_in_json_and_closed(house: House, data):
    async with house.client() as client:
        await client.send(data)
        answer = await client.read()
        assert answer.status == 400
        assert answer.refusal()[0] == "invalid_request"
        assert await client.closed()
    assert house.answered() == {400: 1}
    assert not house.refused(), "nobody knows of an event in it"


async def test_an_answer_to_no_http_quotes_nothing_of_it(house: House):
    answer = await house.exchange(b"POST /v1/log_event HTTP/1.1\r\nHost: x\r\nstatsig-api-key: secret-\x00key\r\n\r\n")
    assert answer.status == 400
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "fields",
    [
        b"X: " + b"a" * 20_000 + b"\r\n",
        b"X: a\r\n" * 1_000,
        b"".join(b"X%d: %b\r\n" % (n, b"a" * 8_000) for n in range(20)),
    ],
)
async def test_a_huge_head_is_answered_400_in_json(house: House, fields):
    answer = await house.exchange(b"POST /v1/log_event HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    assert answer.status == 400
    assert answer.refusal()[0] == "invalid_request"


async def test_a_head_that_grows_without_end_is_cut_off_at_64_kib(house: House):
    async with house.client() as client:
        await client.send(b"POST /v1/log_event HTTP/1.1\r\nHost: x\r\n")
        sent = 0
        while not client.reader.at_eof() and not client.reader._buffer and sent < 200_000:
            await client.send(b"X%d: " % sent + b"a" * 4_000 + b"\r\n")
            sent += 4_000
            await asyncio.sleep(0)
        assert (await client.read()).status == 400
    assert sent < 200_000


@pytest.mark.parametrize(
    "body",
    [
        chunked(BODY),
        chunked(*[BODY[n : n + 1] for n in range(len(BODY))]),
        chunked(BODY[:10], BODY[10:], trailer=b"X-Checksum: 1\r\nExpires: never\r\n"),
        b"%X;name=value;flag\r\n" % len(BODY) + BODY + b"\r\n0;last\r\n\r\n",
        b"0000%x\r\n" % len(BODY) + BODY + b"\r\n000\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_chunked_bodies_arrive_whole(house: House, body, pieces):
    async with house.client() as client:
        data = post(body, headers=CHUNKED, length=None)
        step = len(data) // pieces + 1
        for at in range(0, len(data), step):
            await client.send(data[at : at + step])
            await asyncio.sleep(0.002)
        assert (await client.read()).status == 202
        await client.send(post())
        assert (await client.read()).status == 202, "the connection goes on"
    assert await house.stored() == [EVENT, EVENT]


@pytest.mark.parametrize("bad", [b"ZZ\r\n", b"-5\r\n", b"5\r\nhelloX", b"ffffffffffffffffff\r\n", b"\r\n"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_malformed_chunk_is_refused_at_once_and_nothing_kept(house: House, caplog, bad, at_once):
    start = post(b"", headers=CHUNKED, length=None) + b"%x\r\n" % len(BODY) + BODY + b"\r\n"
    async with house.client() as client:
        if at_once:
            await client.send(start + bad)
        else:
            await client.send(start)
            await asyncio.sleep(0.02)
            await client.send(bad)
        answer = await client.read(seconds=2)
        assert answer.status == 400
        answer.refusal()
        assert await client.closed(2)
    assert house.untouched()
    assert not caplog.records


async def test_chunks_that_only_cost_are_refused(house: House):
    async with house.client() as client:
        await client.send(post(b"", headers=CHUNKED, length=None))
        client.writer.write(b"1\r\n \r\n" * 100_000)
        answer = await client.read(seconds=4)
        assert answer.status == 400
        assert "too small" in answer.refusal()[1]
    assert house.untouched()


async def test_small_chunks_of_an_honest_body_are_taken(house: House):
    body, events = events_of(*(f"event-{n}" for n in range(3000)))
    pieces = [body[at : at + 24] for at in range(0, len(body), 24)]
    assert (await house.exchange(post(chunked(*pieces), headers=CHUNKED, length=None))).status == 202
    assert await house.stored() == events


async def test_header_names_are_read_in_any_case(house: House):
    for name in ("statsig-api-key", "STATSIG-API-KEY", "Statsig-Api-Key"):
        assert (await house.post(key=None, headers={name: "secret-b"})).status == 202
    assert [lane.key for lane in house.spool.lanes()] == ["secret-b"]


async def test_an_offer_to_upgrade_is_passed_over_and_the_body_taken(house: House):
    for protocol in ("h2c", "websocket"):
        offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
        assert (await house.post(headers=offer)).status == 202
    assert await house.stored() == [EVENT, EVENT]


async def test_connect_is_no_tunnel(house: House):
    answer = await house.exchange(head("CONNECT", "relay:80", {"Host": "relay:80"}))
    assert answer.status == 404
    answer.refusal()


# ── compression ────────────────────────────────────────────────────────────────────────────────────────────────────

COMPRESSED = {
    "gzip": (gzip.compress(BODY), {"Content-Encoding": "gzip"}, ""),
    "gzip without a header": (gzip.compress(BODY), {}, ""),
    "gz=1": (gzip.compress(BODY), {}, "?gz=1"),
    "two members": (gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), {"Content-Encoding": "gzip"}, ""),
    "zstd": (zstandard.compress(BODY), {"Content-Encoding": "zstd"}, ""),
    "deflate": (zlib.compress(BODY), {"Content-Encoding": "deflate"}, ""),
    "plain that says gzip": (BODY, {"Content-Encoding": "gzip"}, ""),
    "any content type": (BODY, {"Content-Type": "text/plain;charset=UTF-8"}, ""),
    "an absurd content type": (BODY, {"Content-Type": ";;;="}, ""),
}


@pytest.mark.parametrize("name", COMPRESSED)
async def test_each_compression_is_undone_by_what_the_bytes_say(house: House, name):
    body, headers, query = COMPRESSED[name]
    assert (await house.post(body, headers=headers, path="/v1/log_event" + query)).status == 202
    assert await house.stored() == [EVENT]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("size", [1, 30_000])
async def test_a_truncated_stream_is_refused_wherever_it_ends_and_nothing_kept(house: House, pack, size):
    body, _ = events_of(*(f"event-{n * 2654435761 % 2**32}" for n in range(size // 30 + 1)))
    packed = pack(body)
    for end in sorted({*range(4, len(packed), max(1, len(packed) // 12)), len(packed) - 1}):
        answer = await house.post(packed[:end])
        assert answer.status == 400, end
        assert answer.refusal()[0] == "invalid_request"
    assert house.untouched()
    assert (await house.post(packed)).status == 202, "whole it is fine"


async def test_an_unknown_coding_is_415_and_says_what_is_known(house: House):
    answer = await house.post(b"\x00\x01\x02nonsense", headers={"Content-Encoding": "br"})
    assert answer.status == 415
    code, message = answer.refusal()
    assert code == "encoding_unsupported"
    assert "gzip" in message


# ── what the answer says ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"[]", "object"),
        (b"{", "JSON"),
        (b"{}", "`events`"),
        (b'{"events":[]}', "empty"),
        (b'{"events":{}}', "array"),
        (b'{"events":[{"eventName":""},{"time":1}]}', "events[0]"),
        (b'{"events":[' + EVENT + b'],"events":[]}', "twice"),
        (BODY.decode().encode("utf-16"), "UTF-16"),
    ],
)
async def test_nothing_usable_is_400_that_says_where_and_why(house: House, body, words):
    answer = await house.post(body)
    assert answer.status == 400
    code, message = answer.refusal()
    assert code == "invalid_request"
    assert words in message
    assert house.untouched()


async def test_the_good_events_are_kept_and_the_bad_ones_named(house: House):
    body = b'{"events":[' + EVENT + b',{"eventName":""},' + EVENT + b",7]}"
    answer = await house.post(body)
    assert answer.status == 202
    assert answer.json["success"] is True
    rejected = answer.json["rejected"]
    assert [one["index"] for one in rejected] == [1, 3]
    assert all(one["message"] for one in rejected)
    stats = house.spool.stats()
    assert (stats.enqueued_events, stats.dead_events, dict(stats.dead_lettered_events)) == (4, 2, {"invalid": 2})
    assert await house.stored() == [EVENT, EVENT]
    assert house.observer.accepted_events == 4
    assert not house.refused()


async def test_thousands_of_bad_events_make_few_dead_letters(house: House):
    bad = [b"{}", b"7", b'{"eventName":""}'] * 900
    answer = await house.post(b'{"events":[' + b",".join([EVENT, *bad]) + b"]}")
    assert answer.status == 202
    assert [one["index"] for one in answer.json["rejected"]] == list(range(1, 2701))
    stats = house.spool.stats()
    assert stats.dead_events == 2700
    assert house.spool._pager.last_id <= 5, "one chunk for the good one, one for each reason"
    assert await house.stored() == [EVENT]


async def test_a_request_id_is_echoed_where_it_can_be_and_made_where_not(house: House):
    assert (await house.post(headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = set()
    for given in ({}, {"X-Request-Id": "x" * 129}, {"X-Request-Id": "caf\xe9"}, {"X-Request-Id": "a\tb"}):
        for body in (BODY, b"[]"):
            made.add((await house.post(body, headers=given)).headers["x-request-id"])
    assert len(made) == 8, "each its own"
    assert all(re.fullmatch(r"[0-9a-f]{12}-\d+", one) for one in made)


async def test_answers_have_the_time_and_no_surprises_in_their_heads(house: House):
    answer = await house.post()
    expected = {"content-type", "content-length", "date", "server", "x-request-id"}
    assert set(answer.headers) == expected


async def test_a_path_of_the_operators_own_is_taken_and_tidied(tmp_path):
    async with open_house(tmp_path, paths=["/my//alias/"]) as house:
        assert (await house.post(path="/my/alias")).status == 202
        assert (await house.post(path="/v1/log_event")).status == 404


async def test_private_attributes_never_reach_the_disk_and_can_be_let_through(tmp_path):
    body = b'{"events":[{"eventName":"a","time":1,"user":{"userID":"u","privateAttributes":{"p":1}}}]}'
    for strip in (True, False):
        async with open_house(tmp_path / str(strip), strip_private_attributes=strip) as house:
            assert (await house.post(body)).status == 202
            assert (b"privateAttributes" in (await house.stored())[0]) is not strip


async def test_an_event_without_time_is_stamped_in_the_clients_clock(house: House):
    ahead = {"statsig-client-time": "1795000060000"}  # a minute ahead of the relay's 1795000000000
    assert (await house.post(b'{"events":[{"eventName":"a"}]}', headers=ahead)).status == 202
    assert await house.stored() == [b'{"time":1795000060000,"eventName":"a"}']
