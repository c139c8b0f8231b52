"""The fast reader takes what is plainly a simple request, and leaves all else to aiohttp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.listener.simple import BODY_BYTES_MAX, read_head

LINE = b"POST /v1/log_event HTTP/1.1"
USUAL = (b"Host: h", b"statsig-api-key: secret-k", b"Content-Length: 2")


def request(*lines: bytes, body: bytes = b"{}") -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_a_simple_request_is_read():
    head = read_head(request(LINE, *USUAL))
    assert head is not None
    assert (head.path, head.query) == ("/v1/log_event", "")
    assert head.headers == {"host": "h", "statsig-api-key": "secret-k", "content-length": "2"}
    data = request(LINE, *USUAL)
    assert data[head.body_at : head.length] == b"{}"


def test_names_are_lowered_and_values_trimmed_and_the_query_kept():
    head = read_head(request(b"POST /v1/rgstr?k=a&gz=1 HTTP/1.1", b"HOST:h", b"X-Y: \t b c \t", b"content-LENGTH: 0"))
    assert head is not None
    assert head.query == "k=a&gz=1"
    assert head.headers == {"host": "h", "x-y": "b c", "content-length": "0"}


def test_a_body_that_has_not_all_come_yet_is_told_by_the_length():
    head = read_head(request(LINE, b"Host: h", b"Content-Length: 5", body=b"ab"))
    assert head is not None
    assert head.length > len(request(LINE, b"Host: h", b"Content-Length: 5", body=b"ab"))


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        request(LINE, *USUAL)[:-3],  # the head is not whole
        request(b"GET /v1/log_event HTTP/1.1", *USUAL),
        request(b"POST /v1/log_event HTTP/1.0", *USUAL),
        request(b"POST  /v1/log_event HTTP/1.1", *USUAL),
        request(b"POST http://h/v1/log_event HTTP/1.1", *USUAL),
        request(b"POST /v1/log%5fevent HTTP/1.1", *USUAL),
        request(b"POST /v1//log_event HTTP/1.1", *USUAL),
        request(b"POST /v1/\xff HTTP/1.1", *USUAL),
        request(b"post /v1/log_event HTTP/1.1", *USUAL),
        b"\r\n" + request(LINE, *USUAL),
        request(LINE, b"statsig-api-key: k", b"Content-Length: 2"),  # no Host
        request(LINE, b"Host: h"),  # no length
        request(LINE, *USUAL, b"Content-Length: 2"),
        request(LINE, *USUAL, b"content-length: 3"),
        request(LINE, b"Host: h", b"Content-Length: +2"),
        request(LINE, b"Host: h", b"Content-Length: 2, 2"),
        request(LINE, b"Host: h", b"Content-Length: 0x2"),
        request(LINE, b"Host: h", b"Content-Length: \xb2"),
        request(LINE, b"Host: h", b"Content-Length: %d" % (BODY_BYTES_MAX + 1)),
        request(LINE, *USUAL, b"Transfer-Encoding: chunked"),
        request(LINE, *USUAL, b"Transfer-Encoding : chunked"),
        request(LINE, *USUAL, b"Expect: 100-continue"),
        request(LINE, *USUAL, b"Connection: close"),
        request(LINE, *USUAL, b"Connection: Upgrade"),
        request(LINE, *USUAL, b"Upgrade: h2c"),
        request(LINE, *USUAL, b"Origin: http://evil"),
        request(LINE, *USUAL, b"X-Request-Id: 7"),
        request(LINE, *USUAL, b" folded: line"),
        request(LINE, *USUAL, b"no colon"),
        request(LINE, *USUAL, b": no name"),
        request(LINE, *USUAL, b"na me: v"),
        request(LINE, *USUAL, b"name: a\nContent-Length: 9"),
        request(LINE, *USUAL, b"name: a\rb"),
        request(LINE, *USUAL, b"name: \x00"),
        request(LINE, *USUAL, b"name: caf\xc3\xa9"),
        request(LINE, *USUAL, b"a: 1", b"A: 2"),
        request(LINE, *USUAL, b"long: " + b"x" * 5000),
        request(LINE.replace(b"\r", b""), *USUAL).replace(b"\r\n", b"\n"),
    ],
)
def test_anything_odd_is_left_to_aiohttp(odd: bytes):
    assert read_head(odd) is None
    assert read_head(odd) is None  # what is remembered of the lines changes nothing


def test_keep_alive_said_aloud_changes_nothing():
    assert read_head(request(LINE, *USUAL, b"Connection: keep-alive")) is not None


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=20))
def test_no_bytes_make_it_fail(lines: list[bytes], body: bytes):
    for data in (
        request(LINE, *lines, body=body),
        request(*lines, body=body),
        request(LINE, *USUAL, *lines, body=body),
    ):
        head = read_head(data)
        if head is not None:
            assert head.length - head.body_at == int(head.headers["content-length"])
            assert not {"transfer-encoding", "expect", "upgrade"} & set(head.headers)
