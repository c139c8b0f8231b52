"""Undoes a body's compression, in bounded memory.

The bytes decide, the headers only break ties: browsers send gzip without any Content-Encoding, and proxies leave the
header standing over a body that they have already inflated.

    begins like a JSON object or a byte order mark   as it is, whatever the headers say
    begins 1f 8b                                     gzip, any number of members, zero padding after the last
    begins 28 b5 2f fd                               zstd, any number of frames
    anything else                                    what Content-Encoding or `gz=1` says, and refused unless it is that

A stream that ends early, fails its checksum or is followed by other bytes is refused whole. No more is ever held than
`inflated_bytes_max` and one step's output.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Final, cast

import zstandard
from isal import isal_zlib

from relay.errors import EncodingUnsupported, InvalidRequest, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

STREAMS_MAX: Final = 16_384
"""Members or frames in one body; each costs its set-up, so a body of nothing but empty ones would be slow."""

ZSTD_WINDOW_BYTES_MAX: Final = 8 << 20
"""What RFC 8878 asks a decoder to support; a wider window would be memory that a sender chooses."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_PLAIN: Final = re.compile(
    rb'[ \t\n\r]*+(?:\{[ \t\n\r]*+["}]|\[[ \t\n\r]*+[\[{"\]])|\xef\xbb\xbf|\xfe\xff|\xff\xfe|[ \t\n\r]*+\Z'
)
_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15
_READ_BYTES: Final = 16 << 10  # small, for every member copies what its read left over
_WRITE_BYTES: Final = 1 << 20
_ZSTD_READ_BYTES: Final = 128  # four bytes make a block of 128 KiB, so these make 4 MiB at most
_ZSTD_WRITE_BYTES: Final = 16 << 10
_INFLATE_ERROR = cast("type[Exception]", isal_zlib.error)  # the stubs take it for an instance
_SUPPORTED: Final = "identity, gzip, zstd and deflate"


def needs_inflating(body: bytes) -> bool:
    """Tell whether `inflate` has more to do than hand the body back; cheap, for it looks at the first bytes only."""
    return not body.startswith(b'{"') and _PLAIN.match(body) is None


def inflate(body: bytes, content_encoding: str, gzip_claimed: bool, *, inflated_bytes_max: int) -> bytes:  # noqa: FBT001 - read as in the query
    """Give the body as its sender wrote it, at most `inflated_bytes_max` bytes.

    `content_encoding` is the header's value, "" where there is none; `gzip_claimed` is the browser SDK's `gz=1`.
    Raises TooLarge past the bound, InvalidRequest where the stream is damaged or not what it claims to be, and
    EncodingUnsupported for codings we cannot read.
    """
    undo = _decoder(body, content_encoding, gzip_claimed)
    if undo is not None:
        out = _Output(inflated_bytes_max)
        try:
            undo(body, out)
        except (_INFLATE_ERROR, zstandard.ZstdError) as exc:
            raise InvalidRequest(f"the compressed body is damaged: {exc}") from exc
        return out.content()
    if len(body) > inflated_bytes_max:
        raise _too_large(inflated_bytes_max)
    return body


def _decoder(body: bytes, content_encoding: str, gzip_claimed: bool) -> Callable[[bytes, _Output], None] | None:  # noqa: FBT001 - as above
    """Choose by the first bytes, then by the headers; None means the body is plain already."""
    if _PLAIN.match(body):
        return None
    if body.startswith(_GZIP_MAGIC):
        return _gunzip
    if body.startswith(_ZSTD_MAGIC):
        return _unzstd
    codings = [name for part in content_encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if codings == ["deflate"]:
        return _unzlib
    if codings == ["zstd"]:
        return _unzstd  # its first frame may be one to skip, whose magic differs
    if codings in (["gzip"], ["x-gzip"]) or (gzip_claimed and not codings):
        raise InvalidRequest("the body is announced as gzip and does not begin like gzip")
    if codings:
        raise EncodingUnsupported(f"the body's Content-Encoding is not supported; supported are {_SUPPORTED}")
    return None


class _Output:
    """What has been inflated so far; refuses to grow past its bound."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = BytesIO()  # hands its buffer over without a copy

    def room(self) -> int:
        """Say how much may be asked for at once: one byte more than fits, so that too much is noticed."""
        return min(_WRITE_BYTES, self._bytes_max - self._held.tell() + 1)

    def add(self, piece: bytes) -> None:
        if self._held.tell() + len(piece) > self._bytes_max:
            raise _too_large(self._bytes_max)
        self._held.write(piece)

    def content(self) -> bytes:
        return self._held.getvalue()


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the inflated body has more than {bytes_max} bytes (listen.inflated_bytes_max)")


def _gunzip(body: bytes, out: _Output) -> None:
    at = 0
    for _ in range(STREAMS_MAX):
        at = _stream(body, at, _GZIP_WBITS, out)
        if not body.startswith(_GZIP_MAGIC, at):
            break
    else:
        raise _too_many_streams()
    if body.count(0, at) != len(body) - at:  # tar and tape writers pad with zeros (RFC 1952 leaves it open)
        raise _trailing()


def _unzlib(body: bytes, out: _Output) -> None:
    if _stream(body, 0, _ZLIB_WBITS, out) != len(body):
        raise _trailing()


def _stream(body: bytes, at: int, wbits: int, out: _Output) -> int:
    """Inflate the stream that begins at `at`; give the position behind it."""
    stream = isal_zlib.decompressobj(wbits)
    piece = b""
    while not stream.eof:
        if not piece:
            piece = body[at : at + _READ_BYTES]
            at += len(piece)
        made = stream.decompress(piece, out.room())
        out.add(made)
        piece = stream.unconsumed_tail
        if not (made or piece or stream.eof) and at == len(body):  # nothing more went in, nothing more comes out
            raise _truncated()
    return at - len(stream.unused_data)


def _unzstd(body: bytes, out: _Output) -> None:
    frames = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)  # not to be shared between threads
    at = 0
    for _ in range(STREAMS_MAX):
        frame = frames.decompressobj(write_size=_ZSTD_WRITE_BYTES)
        while not frame.eof:
            piece = body[at : at + _ZSTD_READ_BYTES]
            if not piece:
                raise _truncated()
            at += len(piece)
            out.add(frame.decompress(piece))
        at -= len(frame.unused_data)
        if at == len(body):
            return
    raise _too_many_streams()


def _truncated() -> InvalidRequest:
    return InvalidRequest("the compressed body ends too early")


def _trailing() -> InvalidRequest:
    return InvalidRequest("the compressed body is followed by other bytes")


def _too_many_streams() -> InvalidRequest:
    return InvalidRequest(f"the compressed body has more than {STREAMS_MAX} members")
