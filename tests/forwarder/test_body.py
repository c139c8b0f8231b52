from __future__ import annotations

import json
import shutil
import subprocess
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from relay.forwarder.batching import batch_id, body_bytes
from relay.forwarder.body import BATCH_ID_HEADER, assemble, headers
from relay.spool import Chunk, Record
from relay.spool.record import CODEC_DEFLATE, CODEC_RAW, decode, encode


def chunk(events: list[bytes], *, number: int = 1, envelope: bytes = b"", **more) -> Chunk:
    fields = {"headers": b"", "accepted_at_ms": 1000, "skew_ms": None} | more
    record = Record(key="k", envelope=envelope, text=b",".join(events), events=len(events), **fields)
    return decode(number, 1, encode(record))


def make_event(name: str, padding: int) -> bytes:
    # Padding that does not compress away, so that it is big on both sides.
    return json.dumps(
        {"eventName": name, "pad": "".join(chr(33 + (i * i * 7919) % 90) for i in range(padding))}
    ).encode()


EVENTS = st.lists(st.builds(make_event, st.text(max_size=8), st.sampled_from([0, 1, 50, 700])), min_size=1, max_size=8)
ENVELOPES = st.sampled_from([b"", b'"user":{"userID":"a"}', b'"user":{"x":"' + b"y" * 90_000 + b'"},"n":NaN'])


@st.composite
def mixes(draw) -> tuple[list[Chunk], bytes]:
    envelope = draw(ENVELOPES)
    groups = draw(st.lists(EVENTS, min_size=1, max_size=7))
    chunks = [chunk(group, number=at, envelope=envelope) for at, group in enumerate(groups, 1)]
    text = b",".join(event for group in groups for event in group)
    return chunks, b'{"events":[' + text + b"]" + (b"," + envelope if envelope else b"") + b"}"


def in_odd_steps(data: bytes) -> bytes:
    inflate, out = zlib.decompressobj(31), b""
    for at in range(0, len(data), 7):
        out += inflate.decompress(data[at : at + 7])
    assert inflate.eof
    assert not inflate.unused_data
    return out


@given(mixes())
@settings(deadline=None)
def test_a_gzip_body_is_one_member_that_every_decoder_reads_as_the_same_text(mix):
    chunks, text = mix
    body = assemble(chunks, "gzip")
    assert body.encoding == "gzip"
    assert zlib.decompress(body.data, 31) == text
    assert isal_zlib.decompress(body.data, 31) == text
    assert in_odd_steps(body.data) == text
    assert body_bytes(chunks) >= len(text)


@given(mixes())
@settings(deadline=None)
def test_zstd_and_plain_bodies_hold_the_same_text(mix):
    chunks, text = mix
    plain, squeezed = assemble(chunks, "none"), assemble(chunks, "zstd")
    assert (plain.data, plain.encoding) == (text, "")
    assert (zstandard.ZstdDecompressor().decompress(squeezed.data), squeezed.encoding) == (text, "zstd")
    assert zstandard.frame_content_size(squeezed.data) == len(text)


def typical() -> tuple[list[Chunk], bytes]:
    """Raw, deflated, deflated, raw, raw, deflated: every seam there is."""
    groups = [[make_event(f"{at}-{i}", pad) for i in range(3)] for at, pad in enumerate((5, 3000, 900, 5, 600, 1200))]
    chunks = [chunk(group, number=at, envelope=b'"a":1') for at, group in enumerate(groups, 1)]
    assert [c.codec for c in chunks] == [CODEC_RAW, CODEC_DEFLATE, CODEC_DEFLATE, CODEC_RAW, CODEC_RAW, CODEC_DEFLATE]
    return chunks, b'{"events":[' + b",".join(e for group in groups for e in group) + b'],"a":1}'


def test_gunzip_reads_it():
    chunks, text = typical()
    done = subprocess.run(["gunzip", "-c"], input=assemble(chunks, "gzip").data, capture_output=True, check=True)
    assert done.stdout == text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_node_reads_it():
    chunks, text = typical()
    script = "const z=require('zlib');process.stdin.pipe(z.createGunzip()).pipe(process.stdout)"
    body = assemble(chunks, "gzip").data
    done = subprocess.run(["node", "-e", script], input=body, capture_output=True, check=True, timeout=60)
    assert done.stdout == text


def test_what_is_deflated_on_disk_travels_as_it_is():
    chunks, _ = typical()
    body = assemble(chunks, "gzip").data
    assert all(c.body in body for c in chunks if c.codec == CODEC_DEFLATE)


def test_a_wrong_recorded_checksum_would_be_noticed_by_the_receiver():
    chunks, _ = typical()
    wrong = [Chunk(**{f: getattr(c, f) for f in c.__struct_fields__} | {"text_crc32": 1}) for c in chunks]
    with pytest.raises(zlib.error):
        zlib.decompress(assemble(wrong, "gzip").data, 31)


def sent(chunks: list[Chunk], **how) -> dict[str, str]:
    return headers("secret-k", chunks, **{"encoding": "gzip", "attempts": 0, "now_ms": 50_000} | how)


def test_the_headers_of_an_attempt():
    lines = b"statsig-sdk-type: py-server\nUser-Agent: python-requests/2.34\nx-request-service: unknown"
    two = [chunk([b"{}", b"{}"], headers=lines, skew_ms=1500), chunk([b"{}"], headers=lines, skew_ms=1800)]
    got = sent(two, attempts=2)
    assert got.pop("user-agent").startswith("event-relay/")
    assert sent(two)["user-agent"].endswith(" python-requests/2.34")
    assert got.pop(BATCH_ID_HEADER) == batch_id("secret-k", two)
    assert got == {
        "statsig-sdk-type": "py-server",
        "x-request-service": "unknown",
        "content-type": "application/json",
        "content-encoding": "gzip",
        "accept-encoding": "identity",
        "statsig-api-key": "secret-k",
        "statsig-client-time": "48500",
        "statsig-event-count": "3",
        "statsig-retry-count": "2",
    }


def test_a_request_without_client_time_goes_out_without_one():
    assert "statsig-client-time" not in sent([chunk([b"{}"])])


def test_secrets_hop_by_hop_headers_and_ours_are_never_taken_from_a_client():
    lines = b"Cookie: a=b\nAuthorization: Bearer x\nHost: evil\nConnection: close\nTransfer-Encoding: chunked\n"
    lines += (
        b"statsig-api-key: other\nstatsig-client-time: 1\ncontent-encoding: br\ncontent-length: 3\nstatsig-retry: 9"
    )
    assert sent([chunk([b"{}"], headers=lines)]) | {BATCH_ID_HEADER: ""} == sent([chunk([b"{}"])]) | {
        BATCH_ID_HEADER: ""
    }


@given(st.binary(max_size=60) | st.text("a\x01:\n\r \x7f\x00é", max_size=12).map(str.encode))
def test_no_kept_header_can_smuggle_a_line(raw):
    for name, value in sent([chunk([b"{}"], headers=b"x-odd: " + raw)]).items():
        assert not any(c < " " or c == "\x7f" for c in name + value)
        assert not set(name) & set(" :()")
        (name + value).encode()


def test_the_batch_id_is_the_same_for_the_same_chunks_and_differs_for_others():
    one, twin, other = chunk([b"{}"], number=1), chunk([b"{}"], number=2), chunk([b"[]"], number=1)
    assert batch_id("k", [one]) == batch_id("k", [chunk([b"{}"], number=1)])
    ids = {batch_id(*what) for what in (("k", [one]), ("k", [twin]), ("k", [other]), ("l", [one]), ("k", [one, twin]))}
    assert len(ids) == 5
