"""Whatever bytes arrive, the room answers with what it has read or with a refusal, and never with anything else."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from wire.bodies import LIMITS, NOW_MS, read

from relay.errors import Refusal
from relay.wire import Parsed, cut, inflate, parse_body, read_head, split_events

FOLDER = Path(__file__).parents[1] / "captures"
REQUESTS = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*/*.json"))]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"NaN", b"-Infinity", b"1e400", b"null", b"\\ud83d", b"\\u0065"),
    *(
        b'"events"',
        b'"eventName"',
        b'"time"',
        b'"user"',
        b'"privateAttributes"',
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b" ",
    ),
]


def body_of(request: dict[str, str]) -> tuple[bytes, str, bool]:
    headers = CIMultiDict(request["headers"])
    head = read_head(headers, request["query_string"])
    return base64.b64decode(request["body_base64"]), headers.get("content-encoding", ""), head.gzip_claimed


PLAIN = [inflate(*body_of(request), inflated_bytes_max=1 << 20) for request in REQUESTS]


def mutate(data: bytes, seed: int, times: int) -> bytes:
    """Cut, repeat, flip and insert at random places."""
    dice = random.Random(seed)  # noqa: S311 - no secret, a seed that can be repeated
    for _ in range(times):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice([0, 1, 2, 20, 2_000]))
        put = dice.choice(
            [b"", data[at:end] * 2, bytes([dice.randrange(256)]), dice.choice(TOKENS), dice.choice(TOKENS)]
        )
        data = data[:at] + put + data[end:]
    return data


def sound(parsed: Parsed) -> None:
    """Hold what was taken to what was promised of it."""
    events = split_events(parsed.text)
    assert len(events) == parsed.events > 0
    assert all(event.startswith(b"{") and event.endswith(b"}") for event in events)
    assert sum(count for _, count in cut(parsed.text, parsed.events, events_max=3, bytes_max=500)) == parsed.events
    again = read(b'{"events":[' + parsed.text + b"]," + (parsed.envelope or b'"x":0') + b"}")
    assert (split_events(again.text), again.rejected) == (events, ())


@given(st.sampled_from(PLAIN), st.integers(0, 1 << 32), st.integers(1, 6))
def test_damaged_recordings_are_read_or_refused(data: bytes, seed: int, times: int):
    try:
        parsed = read(mutate(data, seed, times))
    except Refusal:
        return
    sound(parsed)


@given(st.sampled_from(REQUESTS), st.integers(0, 1 << 32), st.integers(1, 3))
def test_damaged_compressed_recordings_are_read_or_refused(request: dict[str, str], seed: int, times: int):
    data, coding, gz = body_of(request)
    try:
        raw = inflate(mutate(data, seed, times), coding, gz, inflated_bytes_max=1 << 20)
        parsed = parse_body(raw, limits=LIMITS, now_ms=NOW_MS, skew_ms=None, strip_private=True)
    except Refusal:
        return
    sound(parsed)


@given(st.lists(st.sampled_from([*TOKENS, b'{"events":[{"eventName":"a"', b"}]}", b'{"eventName":"a"}']), max_size=12))
def test_any_order_of_tokens_is_read_or_refused(tokens: list[bytes]):
    for text in (b"".join(tokens), b'{"events":[' + b"".join(tokens) + b"]}"):
        try:
            parsed = read(text)
        except Refusal:
            continue
        sound(parsed)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        parsed = read(data)
    except Refusal:
        return
    sound(parsed)
