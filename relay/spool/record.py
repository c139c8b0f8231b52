"""What the spool keeps: records as requests bring them, chunks as they lie on disk.

One chunk is one row. Its bytes, all integers little-endian:

     0  u32  checksum       crc32 of every stored byte after this field; stands first in every version
     4  u8   version        1
     5  u8   codec          0 raw · 1 deflated (RFC 1951 blocks ended by a sync flush, never by a final block)
     6  u16  flags          bit 0: the client sent no time, so there is no skew
     8  u32  text_crc32     crc32 of the text before it was deflated; goes into the gzip trailer of a batch
    12  u32  text_bytes     length of the text before it was deflated
    16  u32  events
    20  u32  envelope_bytes
    24  u32  headers_bytes
    28  u32  body_bytes
    32  i64  accepted_at_ms wall clock, Unix milliseconds
    40  i64  skew_ms        accepted_at − client's clock; 0 where flags bit 0 is set
    48       envelope       raw JSON members that stood beside `events`, joined by commas, no braces
             headers        the client's headers that travel on, one `name: value` a line
             body           the events' raw bytes joined by commas, as the codec says

The text is never re-encoded: what stands between its commas is what the app sent. Deflating once, here, and assembling
the gzip member of a batch from these pieces costs half of compressing at send time (measured 2026-11).
"""

from __future__ import annotations

import struct
from typing import Final, cast

import msgspec
from isal import isal_zlib

from relay.errors import ChunkCorrupt

VERSION: Final = 1
CODEC_RAW: Final = 0
CODEC_DEFLATE: Final = 1
DEFLATE_BYTES_MIN: Final = 2048
"""Texts below this stay raw: a deflate header would cost more than it saves, and the batch squeezes them together."""

_NO_CLIENT_TIME: Final = 1
_HEADER: Final = struct.Struct("<IBBHIIIIIIqq")
_CHECKED_FROM: Final = 4
_LEVEL: Final = 1  # isal level 1: 1.1 µs an event against zlib's 7.7 (measured 2026-11)
_RAW_WBITS: Final = -15
_INFLATE_ERROR = cast("type[Exception]", isal_zlib.error)  # the stubs take it for an instance

HEADER_BYTES: Final = _HEADER.size


class Verdict(msgspec.Struct, frozen=True):
    """Why a dead letter is one."""

    reason: str
    """invalid · rejected · too_large · poison · expired · corrupt"""
    detail: str = ""
    """Upstream's words or ours, a short excerpt."""
    status: int = 0
    """Upstream's status, 0 where there was none."""
    attempts: int = 0
    first_attempt_at_ms: int = 0


class Record(msgspec.Struct, frozen=True):
    """Events of one key as a request brings them; becomes a chunk, alone or merged with its like."""

    key: str
    """The API key; empty for requests that carry none (lane `default`)."""
    envelope: bytes
    headers: bytes
    text: bytes
    """Raw events joined by commas."""
    events: int
    accepted_at_ms: int
    skew_ms: int | None
    """None where the client sent no time."""
    dead: Verdict | None = None
    """Set for events that are stored as dead letters at once."""

    def travels_with(self) -> tuple[str, bytes, bytes, int | None]:
        """Two records with the same answer may share a chunk and a batch."""
        skew = self.skew_ms
        return self.key, self.envelope, self.headers, None if skew is None else skew // 1000


class Chunk(msgspec.Struct, frozen=True):
    """One stored row, read back and checked."""

    id: int
    lane: int
    events: int
    accepted_at_ms: int
    skew_ms: int | None
    envelope: bytes
    headers: bytes
    codec: int
    body: bytes
    text_bytes: int
    text_crc32: int

    def text(self) -> bytes:
        """Give the raw events joined by commas, inflated where the codec asks for it.

        Raises ChunkCorrupt where the body does not inflate to the recorded length and checksum.
        """
        if self.codec == CODEC_RAW:
            return self.body
        try:
            text: bytes = isal_zlib.decompressobj(_RAW_WBITS).decompress(self.body, self.text_bytes + 1)
        except _INFLATE_ERROR as exc:
            raise ChunkCorrupt(f"chunk {self.id} does not inflate: {exc}") from exc
        if len(text) != self.text_bytes or isal_zlib.crc32(text) != self.text_crc32:
            raise ChunkCorrupt(f"chunk {self.id} inflates to other bytes than were stored")
        return text

    def travels_with(self) -> tuple[bytes, bytes, int | None]:
        """Two chunks of a lane with the same answer may share a batch."""
        return self.envelope, self.headers, None if self.skew_ms is None else self.skew_ms // 1000


def deflate(text: bytes) -> bytes:
    """Deflate into blocks that others may follow: ended by a sync flush, with no final block."""
    squeeze = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW_WBITS)
    return bytes(squeeze.compress(text) + squeeze.flush(isal_zlib.Z_SYNC_FLUSH))


def encode(record: Record) -> bytes:
    """Lay a record out as the bytes of a row."""
    text = record.text
    codec, body = CODEC_RAW, text
    if len(text) >= DEFLATE_BYTES_MIN:
        codec, body = CODEC_DEFLATE, deflate(text)
    skew = record.skew_ms
    head = _HEADER.pack(
        0,
        VERSION,
        codec,
        _NO_CLIENT_TIME if skew is None else 0,
        isal_zlib.crc32(text),
        len(text),
        record.events,
        len(record.envelope),
        len(record.headers),
        len(body),
        record.accepted_at_ms,
        skew or 0,
    )
    row = bytearray().join((head, record.envelope, record.headers, body))
    struct.pack_into("<I", row, 0, isal_zlib.crc32(memoryview(row)[_CHECKED_FROM:]))
    return bytes(row)


def decode(chunk_id: int, lane: int, row: bytes) -> Chunk:
    """Read a row back; raises ChunkCorrupt where a length, the version or the checksum is off."""
    if len(row) < HEADER_BYTES:
        raise ChunkCorrupt(f"chunk {chunk_id} has {len(row)} bytes, its header alone needs {HEADER_BYTES}")
    checksum, version, codec, flags, text_crc, text_bytes, events, *lengths, accepted, skew = _HEADER.unpack_from(row)
    if version != VERSION or codec not in (CODEC_RAW, CODEC_DEFLATE):
        raise ChunkCorrupt(f"chunk {chunk_id} has version {version} and codec {codec}, this release reads version 1")
    if isal_zlib.crc32(memoryview(row)[_CHECKED_FROM:]) != checksum:
        raise ChunkCorrupt(f"chunk {chunk_id} fails its checksum")
    envelope_end = HEADER_BYTES + lengths[0]
    headers_end = envelope_end + lengths[1]
    if headers_end + lengths[2] != len(row):
        raise ChunkCorrupt(f"chunk {chunk_id} has {len(row)} bytes, its header adds up to {headers_end + lengths[2]}")
    return Chunk(
        id=chunk_id,
        lane=lane,
        events=events,
        accepted_at_ms=accepted,
        skew_ms=None if flags & _NO_CLIENT_TIME else skew,
        envelope=row[HEADER_BYTES:envelope_end],
        headers=row[envelope_end:headers_end],
        codec=codec,
        body=row[headers_end:],
        text_bytes=text_bytes,
        text_crc32=text_crc,
    )
