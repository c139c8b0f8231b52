"""A batch as the bytes of one POST: the body, assembled from chunks as they lie on disk, and its headers; pure.

A gzip body is one member, put together without inflating what is deflated already:

    gzip header | {"events":[ | chunk | , | chunk | … | ] , envelope } | crc32, length
                  └ stored or squeezed ┘ └ as stored: deflate blocks that end at a byte by a sync flush

The text's crc32 is combined from the recorded ones. (One member, since many decoders stop at the first.)
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import zstandard
from isal import isal_zlib

from relay import __version__
from relay.forwarder.batching import batch_id
from relay.spool.record import CODEC_RAW

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.spool import Chunk

Compression = Literal["gzip", "zstd", "none"]

USER_AGENT: Final = f"event-relay/{__version__}"
BATCH_ID_HEADER: Final = "statsig-relay-batch-id"
"""Names what travels; a receiver that has seen it within a day has the batch already."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
"""A header's name, in lower case (RFC 9110, 5.6.2)."""

_GZIP_HEADER: Final = bytes.fromhex("1f8b 08 00 00000000 00 ff")  # RFC 1952: deflate, no flags, no time, unknown system
_STORED: Final = struct.Struct("<BHH")
_TRAILER: Final = struct.Struct("<II")
_STORED_BYTES_MAX: Final = 64
"""Runs up to this go in as they are: starting a compressor for a comma costs more than it saves."""
_LEVEL: Final = 1
_RAW_WBITS: Final = -15
_ZSTD_LEVEL: Final = 3

_OURS: Final = frozenset({
    "content-type", "content-length", "content-encoding", "accept", "accept-encoding", "statsig-api-key",
    "statsig-client-time", "statsig-event-count", "statsig-retry-count", "statsig-retry", "user-agent", BATCH_ID_HEADER,
})  # fmt: skip
_NEVER: Final = frozenset({
    "host", "cookie", "authorization", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te",
    "trailer", "transfer-encoding", "upgrade", "expect",
})  # fmt: skip
"""Hop-by-hop (RFC 9110, 7.6.1) or a secret; the listener keeps none of them, and none goes out should one be kept."""


class Body(msgspec.Struct, frozen=True):
    """What is posted."""

    data: bytes
    encoding: str
    """Content-Encoding; empty for none."""


def assemble(chunks: Sequence[Chunk], compression: Compression) -> Body:
    """Make the body of chunks that may travel together.

    Raises ChunkCorrupt, where it has to inflate one that does not (never for gzip).
    """
    if compression == "gzip":
        return Body(_gzip(chunks), "gzip")
    text = b"".join((b'{"events":[', b",".join(chunk.text() for chunk in chunks), _tail(chunks[0])))
    if compression == "zstd":
        return Body(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(text), "zstd")
    return Body(text, "")


def headers(key: str, chunks: Sequence[Chunk], *, encoding: str, attempts: int, now_ms: int) -> dict[str, str]:
    """Give the headers of one attempt: `attempts` is how many there were before, `now_ms` the wall clock.

    The client's clock is rebuilt from the skew seen when its events were accepted, so that upstream, which shifts
    event times by the difference to its own clock, sees none of the time they waited here.
    """
    first = chunks[0]
    travelling = dict(_travelling(first.headers))
    agent = travelling.pop("user-agent", "")
    ours = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"{USER_AGENT} {agent}".rstrip(),
        "statsig-api-key": key,
        "statsig-event-count": str(sum(chunk.events for chunk in chunks)),
        "statsig-retry-count": str(attempts),
        BATCH_ID_HEADER: batch_id(key, chunks),
    }
    if encoding:
        ours["content-encoding"] = encoding
    if first.skew_ms is not None:
        ours["statsig-client-time"] = str(now_ms - first.skew_ms)
    return travelling | ours


def _gzip(chunks: Sequence[Chunk]) -> bytes:
    out, checksum, length = [_GZIP_HEADER], 0, 0
    run: list[bytes] = [b'{"events":[']

    def end_run(*, final: bool) -> None:
        nonlocal checksum, length
        text = b"".join(run)
        out.append(_squeeze(text, final=final))
        checksum = isal_zlib.crc32(text, checksum)
        length += len(text)
        run.clear()

    for at, chunk in enumerate(chunks):
        if at:
            run.append(b",")
        if chunk.codec == CODEC_RAW:
            run.append(chunk.body)
            continue
        if run:
            end_run(final=False)
        out.append(chunk.body)
        checksum = isal_zlib.crc32_combine(checksum, chunk.text_crc32, chunk.text_bytes)
        length += chunk.text_bytes
    run.append(_tail(chunks[0]))
    end_run(final=True)
    out.append(_TRAILER.pack(checksum, length & 0xFFFF_FFFF))
    return b"".join(out)


def _squeeze(text: bytes, *, final: bool) -> bytes:
    """Make deflate blocks of `text` that begin and end at a byte."""
    if len(text) <= _STORED_BYTES_MAX:
        return _STORED.pack(final, len(text), len(text) ^ 0xFFFF) + text
    squeeze = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW_WBITS)
    end = isal_zlib.Z_FINISH if final else isal_zlib.Z_SYNC_FLUSH
    return bytes(squeeze.compress(text) + squeeze.flush(end))


def _tail(first: Chunk) -> bytes:
    return b"]," + first.envelope + b"}" if first.envelope else b"]}"


def _travelling(lines: bytes) -> Iterator[tuple[str, str]]:
    """Yield the kept headers that go on, names in lower case, values without control characters."""
    for line in lines.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon and _TOKEN.fullmatch(name) and name not in _NEVER and (name == "user-agent" or name not in _OURS):
            yield name, "".join(c for c in value.strip() if c >= " " and c != "\x7f")
