"""What a delivered batch holds, read apart from the relay's own decoder: the sink and the tests judge by it."""

from __future__ import annotations

import re
import zlib
from typing import Final

import msgspec
import zstandard

_GZIP_WBITS: Final = 31
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},:]', re.DOTALL)
_SPACE: Final = b" \t\r\n"
_TOP: Final = 1
_IN_EVENTS: Final = 2


class Unreadable(ValueError):
    """A body that a receiver like Statsig could not take; the text says why."""


class _Body(msgspec.Struct):
    events: list[msgspec.Raw]


_decoder = msgspec.json.Decoder(_Body)


def inflate(body: bytes, encoding: str) -> bytes:
    """Undo a Content-Encoding, as strictly as the strictest receiver: one gzip member or one zstd frame, whole.

    Raises Unreadable for several members, which many decoders cut short in silence, for trailing bytes, for a truncated
    body and for an encoding other than gzip, zstd and identity.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "zstd"):
        raise Unreadable(f"content-encoding {encoding!r} is none of gzip, zstd, identity")
    stream = zlib.decompressobj(_GZIP_WBITS) if encoding == "gzip" else zstandard.ZstdDecompressor().decompressobj()
    try:
        plain = stream.decompress(body)
    except (zlib.error, zstandard.ZstdError) as exc:
        raise Unreadable(f"the body is not {encoding}: {exc}") from exc
    if not stream.eof:
        raise Unreadable(f"the {encoding} body is cut short")
    if stream.unused_data:
        raise Unreadable(f"{len(stream.unused_data)} bytes follow the {encoding} body's end")
    return plain


def split_events(body: bytes) -> list[bytes]:
    """Give the raw bytes of each item of the body's top-level `events`, in order.

    Raises Unreadable where there is no such array or it is empty.
    """
    try:
        events = [bytes(raw) for raw in _decoder.decode(body).events]
    except (msgspec.MsgspecError, RecursionError):  # NaN, lone surrogates, deep nesting: honest clients send them
        events = _scan_events(body)
    if not events:
        raise Unreadable("the body has no events")
    return events


def _scan_events(body: bytes) -> list[bytes]:
    """Find the events by counting brackets outside strings, which needs no opinion about the values."""
    events: list[bytes] = []
    depth, start, previous, inside = 0, 0, b"", False
    for token in _TOKEN.finditer(body):
        mark = token[0]
        if mark in b"[{":
            depth += 1
            if depth == _IN_EVENTS and mark == b"[" and previous == b'"events":':
                inside, start = True, token.end()
        elif mark in b"]}":
            depth -= 1
        if inside and ((mark == b"," and depth == _IN_EVENTS) or (mark == b"]" and depth == _TOP)):
            item = body[start : token.start()].strip(_SPACE)
            events += [item] if item else []
            start, inside = token.end(), mark == b","
        previous = previous + mark if mark == b":" else mark
    if depth:
        raise Unreadable("the body's brackets do not match")
    return events
