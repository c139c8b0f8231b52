"""Recorded requests of real SDKs go through the whole room."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from multidict import CIMultiDict
from wire.bodies import LIMITS, same

from relay.wire import inflate, parse_body, parse_usual, read_head, split_events

CAPTURES = sorted((Path(__file__).parents[1] / "captures").glob("*/*.json"))


def test_the_recordings_are_there():
    assert len(CAPTURES) == 9


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recorded_request_is_read_whole_and_on_the_usual_way(path: Path):
    request = json.loads(path.read_text())
    headers = CIMultiDict(request["headers"])
    head = read_head(headers, request["query_string"])
    raw = inflate(
        base64.b64decode(request["body_base64"]),
        headers.get("content-encoding", ""),
        head.gzip_claimed,
        inflated_bytes_max=64 << 20,
    )
    received_at_ms = int(request["received_at"] * 1000)
    read = parse_body(
        raw, limits=LIMITS, now_ms=received_at_ms, skew_ms=head.skew_ms(received_at_ms), strip_private=False
    )
    sent = request["json"]
    assert same([json.loads(event) for event in split_events(read.text)], sent.pop("events"))
    assert same(json.loads(b"{" + read.envelope + b"}"), sent)
    assert read.text in raw
    assert not read.rejected
    assert head.key.endswith("-driverkey")
    assert head.skew_ms(received_at_ms) == 0
    assert b"statsig-sdk-type: " in head.headers
    assert b"driverkey" not in head.headers
    assert parse_usual(raw, limits=LIMITS, strip_private=False) == read, "a real SDK must never need the exact way"
