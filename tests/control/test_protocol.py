"""The control protocol: what is sent comes back as it was, and what makes no sense is refused in words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.control.naming import UnknownLane, lanes_called
from relay.control.protocol import (
    Done,
    LaneList,
    Lanes,
    LaneView,
    Letters,
    Pause,
    Progress,
    Purge,
    Refused,
    Rekey,
    Replay,
    Resume,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from relay.observe import fingerprint

LANE = LaneView(number=3, fingerprint="abcdef01", state="parked", events=2, bytes=9, error="HTTP 401")


@pytest.mark.parametrize(
    "request_",
    [
        Lanes(),
        Pause("abcdef01"),
        Resume("default"),
        Rekey("7", 'secret-"quoted'),
        Replay(Letters(ids=(1, 2), reason="expired")),
        Purge(Letters(lane="x", older_than_seconds=3.5)),
    ],
)
def test_a_request_comes_out_as_it_went_in_on_one_line(request_):
    line = encode_request(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == request_


@pytest.mark.parametrize("reply", [Progress(1, 2), Done(3, 4, (LANE,)), LaneList((LANE,), True), Refused("a", "b")])
def test_a_reply_comes_out_as_it_went_in_on_one_line(reply):
    line = encode_reply(reply)
    assert line.count(b"\n") == 1
    assert decode_reply(line) == reply


def test_another_version_is_refused_with_ours_in_the_text():
    line = msgspec.json.encode({"version": 2, "request": {"verb": "a verb of tomorrow"}})
    refused = decode_request(line)
    assert isinstance(refused, Refused)
    assert (refused.code, "version 1" in refused.message) == ("version", True)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"version":1}',
        b'{"version":1,"request":{"verb":"explode"}}',
        b'{"version":1,"request":{"verb":"pause"}}',
        b'{"version":1,"request":{"verb":"purge","letters":{"reasn":"expired"}}}',
        b"\xff\xfe",
    ],
)
def test_what_makes_no_sense_is_refused_above_all_a_misspelled_filter(line):
    refused = decode_request(line)
    assert isinstance(refused, Refused)
    assert refused.code == "malformed"


@given(st.binary())
def test_no_line_whatever_raises(line: bytes):
    decode_request(line)
    decode_reply(line)


def test_a_lane_is_found_by_fingerprint_default_and_number():
    lanes = [(1, ""), (2, "secret-a"), (3, "secret-b"), (4, "secret-a")]
    assert lanes_called(fingerprint("secret-a"), lanes) == [2, 4]
    assert lanes_called(fingerprint("secret-a").upper(), lanes) == [2, 4]
    assert lanes_called("default", lanes) == [1]
    assert lanes_called("3", lanes) == lanes_called("#3", lanes) == [3]
    for unknown in ("", "9", "secret-a", "0123abcd"):
        with pytest.raises(UnknownLane, match="relay queue lanes"):
            lanes_called(unknown, lanes)


def test_eight_digits_are_a_fingerprint_and_never_a_number():
    with pytest.raises(UnknownLane):
        lanes_called("00000002", [(2, "secret-a")])
