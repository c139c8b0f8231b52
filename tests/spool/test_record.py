"""What lies on disk: a row comes back as it went in, or is known to be damaged."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ChunkCorrupt
from relay.spool.record import DEFLATE_BYTES_MIN, HEADER_BYTES, Record, decode, deflate, encode

RECORD = Record(
    key="secret-k",
    envelope=b'"user":{"userID":"u"}',
    headers=b"statsig-sdk-type: py-server\n",
    text=b",".join([b'{"eventName":"a","value":%d}' % n for n in range(200)]),
    events=200,
    accepted_at_ms=1_795_012_345_678,
    skew_ms=-1500,
)

records = st.builds(
    Record,
    key=st.text(max_size=5),
    envelope=st.binary(max_size=300),
    headers=st.binary(max_size=100),
    text=st.one_of(st.binary(max_size=100), st.binary(min_size=1, max_size=40).map(lambda b: b * 200)),
    events=st.integers(0, 2**32 - 1),
    accepted_at_ms=st.integers(0, 2**53),
    skew_ms=st.none() | st.integers(-(2**40), 2**40),
)


@given(records)
def test_a_row_comes_back_as_it_went_in(record: Record):
    chunk = decode(7, 3, encode(record))
    assert (chunk.id, chunk.lane, chunk.events) == (7, 3, record.events)
    assert (chunk.accepted_at_ms, chunk.skew_ms) == (record.accepted_at_ms, record.skew_ms)
    assert (chunk.envelope, chunk.headers, chunk.text()) == (record.envelope, record.headers, record.text)


def test_no_flipped_bit_goes_unnoticed():
    row = encode(RECORD)
    for at in range(len(row)):
        for bit in range(8):
            damaged = bytearray(row)
            damaged[at] ^= 1 << bit
            with pytest.raises(ChunkCorrupt):
                decode(1, 1, bytes(damaged))


@given(st.integers(0, 10_000))
def test_no_truncated_row_goes_unnoticed(length: int):
    row = encode(RECORD)
    with pytest.raises(ChunkCorrupt):
        decode(1, 1, row[: length % len(row)])


def test_texts_that_gain_nothing_stay_raw_and_longer_ones_are_deflated():
    small = decode(1, 1, encode(Record("k", b"", b"", b"x" * (DEFLATE_BYTES_MIN - 1), 1, 0, None)))
    large = decode(1, 1, encode(Record("k", b"", b"", b"x" * DEFLATE_BYTES_MIN, 1, 0, None)))
    assert (small.codec, large.codec) == (0, 1)
    assert len(large.body) < 100


def test_deflated_texts_can_follow_one_another_in_one_stream():
    texts = [bytes([65 + n]) * 3000 for n in range(5)]
    whole = b"".join(map(deflate, texts)) + b"\x03\x00"  # an empty final block
    assert zlib.decompressobj(-15).decompress(whole) == b"".join(texts)


def test_the_layout_is_the_one_the_docstring_promises():
    """Other releases read these bytes: a change here is a change of the format's version."""
    row = encode(Record("k", b"EE", b"H\n", b"{}", 1, 5, None))
    assert HEADER_BYTES == 48
    checksum, version, codec, flags, text_crc, *counts, accepted, skew = struct.unpack_from("<IBBHIIIIIIqq", row)
    assert checksum == zlib.crc32(row[4:])
    assert (version, codec, flags, text_crc) == (1, 0, 1, zlib.crc32(b"{}"))
    assert counts == [2, 1, 2, 2, 2]
    assert (accepted, skew) == (5, 0)
    assert row[48:] == b"EEH\n{}"


def test_a_text_that_inflates_to_other_bytes_is_corrupt():
    chunk = decode(1, 1, encode(RECORD))
    forged = type(chunk)(
        **{name: getattr(chunk, name) for name in chunk.__struct_fields__} | {"body": deflate(b"y" * chunk.text_bytes)}
    )
    with pytest.raises(ChunkCorrupt, match="other bytes"):
        forged.text()


def test_records_travel_together_only_when_upstream_would_see_the_same_around_them():
    def kin(**changed):
        fields = {"key": "k", "envelope": b"e", "headers": b"h", "text": b"", "events": 1, "accepted_at_ms": 0}
        return Record(**fields | {"skew_ms": 10_400} | changed).travels_with()

    assert kin() == kin(accepted_at_ms=9, text=b"other", skew_ms=10_999)
    for other in ({"key": "l"}, {"envelope": b"f"}, {"headers": b"i"}, {"skew_ms": 11_000}, {"skew_ms": None}):
        assert kin() != kin(**other), other
