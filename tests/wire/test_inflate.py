"""Bodies are inflated whole or refused, by what they are and not by what they are called, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import EncodingUnsupported, InvalidRequest, Refusal, TooLarge
from relay.wire import inflate, needs_inflating
from relay.wire.inflate import STREAMS_MAX

BODY = b'{"events":[{"eventName":"a","time":1}]}'
MAX = 1 << 20


def undo(body: bytes, coding: str = "", *, gz: bool = False, bytes_max: int = MAX) -> bytes:
    return inflate(body, coding, gz, inflated_bytes_max=bytes_max)


def zstd(data: bytes, *, sized: bool = True, window_log: int = 0) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log, write_checksum=True)
    squeeze = zstandard.ZstdCompressor(compression_params=parameters)
    if sized:
        return squeeze.compress(data)
    stream = squeeze.compressobj()
    return stream.compress(data) + stream.flush()


SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize(
    ("body", "coding", "gz"),
    [
        (BODY, "", False),
        (BODY, "identity", False),
        (BODY, "gzip", False),
        (BODY, "zstd", False),
        (BODY, "br", False),
        (BODY, "", True),
        (b" \n" + BODY, "gzip", False),
        (gzip.compress(BODY), "gzip", False),
        (gzip.compress(BODY), "GZIP", False),
        (gzip.compress(BODY), "x-gzip", False),
        (gzip.compress(BODY), "identity, gzip", False),
        (gzip.compress(BODY), "", True),
        (gzip.compress(BODY), "", False),
        (gzip.compress(BODY), "zstd", False),
        (gzip.compress(BODY), "br", False),
        (gzip.compress(BODY) + bytes(512), "gzip", False),
        (gzip.compress(BODY[:9]) + gzip.compress(b"") + gzip.compress(BODY[9:]), "gzip", False),
        (zstd(BODY), "zstd", False),
        (zstd(BODY), "", False),
        (zstd(BODY), "gzip", False),
        (zstd(BODY, sized=False), "zstd", False),
        (zstd(BODY[:9]) + SKIPPABLE + zstd(BODY[9:], sized=False), "zstd", False),
        (SKIPPABLE + zstd(BODY), "zstd", False),
        (zlib.compress(BODY), "deflate", False),
        (zlib.compress(BODY), "Deflate", False),
    ],
)
def test_a_body_is_undone_by_its_bytes_whatever_the_headers_say(body: bytes, coding: str, *, gz: bool):
    assert undo(body, coding, gz=gz).strip() == BODY


@pytest.mark.parametrize(
    ("body", "coding", "gz"),
    [
        (gzip.compress(BODY) + b"x", "gzip", False),
        (gzip.compress(BODY) + bytes(9) + b"x", "gzip", False),
        (gzip.compress(BODY) + bytes(9) + gzip.compress(BODY), "gzip", False),
        (gzip.compress(BODY) + b"\x1f\x8b", "gzip", False),
        (zstd(BODY) + b"x", "zstd", False),
        (zstd(BODY) + bytes(8), "zstd", False),
        (zlib.compress(BODY) + b"\0", "deflate", False),
        (zlib.compress(BODY, wbits=-15), "deflate", False),
        (zlib.compress(BODY), "gzip", False),
        (b"\xff" * 40, "gzip", False),
        (b"\xff" * 40, "", True),
        (b"\xff" * 40, "zstd", False),
        (zstd(bytes(100), window_log=27, sized=False), "zstd", False),
    ],
)
def test_what_is_damaged_or_followed_by_other_bytes_is_refused(body: bytes, coding: str, *, gz: bool):
    with pytest.raises(InvalidRequest):
        undo(body, coding, gz=gz)


@pytest.mark.parametrize("body", [gzip.compress(BODY), zstd(BODY), zstd(BODY, sized=False)], ids=["gzip", "zstd", "zs"])
def test_no_cut_of_a_compressed_body_is_accepted(body: bytes):
    for end in range(4, len(body)):
        with pytest.raises(InvalidRequest):
            undo(body[:end])


@pytest.mark.parametrize("body", [gzip.compress(BODY), zstd(BODY)], ids=["gzip", "zstd"])
def test_no_flipped_bit_changes_the_content_unnoticed(body: bytes):
    for bit in range(32, 8 * len(body)):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(Refusal):
            assert undo(bytes(damaged)) == BODY  # bits that mean nothing: time stamp, operating system


def test_other_codings_are_answered_with_the_list_of_ours():
    for coding in ("br", "compress", "gzip, br", "aws-chunked"):
        with pytest.raises(EncodingUnsupported, match="identity, gzip, zstd and deflate"):
            undo(b"\x0b\x02\x80{}\x03", coding)


def test_unknown_bytes_without_a_claim_are_left_for_the_decoder_to_refuse():
    assert undo(b"k=v") == b"k=v"


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, zstd, lambda data: zstd(data, sized=False)])
def test_the_bound_is_exact_and_named(wrap):
    body = BODY.ljust(1_000)
    assert undo(wrap(body), bytes_max=1_000) == body
    with pytest.raises(TooLarge, match=r"listen\.inflated_bytes_max"):
        undo(wrap(body), bytes_max=999)


def test_empty_members_without_end_are_refused_soon():
    empty = gzip.compress(b"")
    assert undo(empty * STREAMS_MAX) == b""
    with pytest.raises(InvalidRequest, match="members"):
        undo(empty * (STREAMS_MAX + 1))
    with pytest.raises(InvalidRequest, match="members"):
        undo(zstd(b"") * (STREAMS_MAX + 1))


BOMB_TEST = """
import sys, zstandard
from isal import isal_zlib
from relay.errors import TooLarge
from relay.wire import inflate

def grown():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) - before

zeros = bytes(1 << 20)
stream = {"gzip": lambda: isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31),
          "zstd": lambda: zstandard.ZstdCompressor().compressobj()}[sys.argv[1]]()
bomb = b"".join([stream.compress(zeros) for _ in range(512)] + [stream.flush()])
before = 0
before = grown()
try:
    inflate(bomb, sys.argv[1], False, inflated_bytes_max=32 << 20)
except TooLarge:
    print(len(bomb), grown() >> 10)
"""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_of_half_a_gigabyte_takes_no_more_memory_than_the_bound(coding: str):
    run = subprocess.run([sys.executable, "-c", BOMB_TEST, coding], capture_output=True, text=True, check=True)
    bomb_bytes, grown_mib = map(int, run.stdout.split())
    assert bomb_bytes < 4 << 20
    assert grown_mib <= 32 + 16, "the bound, one step, a window and what the allocator rounds up"


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), min_size=1, max_size=6), st.integers(0, 20))
def test_any_members_and_frames_give_the_content_in_order(parts: list[tuple[bytes, bool]], padding: int):
    content = b"".join(data for data, _ in parts)
    assert undo(b"".join(gzip.compress(data, 1 if fast else 9) for data, fast in parts) + bytes(padding)) == content
    assert undo(b"".join(zstd(data, sized=sized) for data, sized in parts)) == content


@given(st.binary(max_size=200_000))
def test_bodies_longer_than_a_read_come_through(data: bytes):
    data = data * 3 + bytes(70_000)
    assert undo(gzip.compress(data)) == data
    assert undo(zstd(data)) == data


@given(
    tail=st.binary(max_size=60),
    start=st.sampled_from(
        [b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x78\x9c", gzip.compress(BODY)[:-6], zstd(BODY)[:-5]]
    ),
    coding=st.sampled_from(["", "gzip", "zstd", "deflate", "br", "gzip,gzip", "\x00"]),
    gz=st.booleans(),
)
def test_nothing_but_a_refusal_comes_of_any_bytes(tail: bytes, start: bytes, coding: str, *, gz: bool):
    with contextlib.suppress(Refusal):
        assert len(undo(start + tail, coding, gz=gz, bytes_max=10_000)) <= 10_000


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        *((body, False) for body in (BODY, b"", b"  " + BODY, b"\xef\xbb\xbf" + BODY, b"{}")),
        *((body, True) for body in (gzip.compress(BODY), zstd(BODY), zlib.compress(BODY))),
    ],
)
def test_only_what_inflate_would_change_needs_inflating(body: bytes, *, needs: bool):
    assert needs_inflating(body) is needs
