"""Reads the usual request straight from the bytes that came: a whole HTTP/1.1 POST with nothing odd about it; pure.

Most requests of a busy app are alike: one packet, one short head, a body with a length. For those, the general way
through aiohttp (parser, request object, task, router, response) costs several times what all of the relay's own work
does. This reads such a request in a few microseconds, and gives up on everything it was not made for: then the
same bytes go to aiohttp, which knows all of HTTP. It is stricter than aiohttp, never laxer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from relay import wire
from relay.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_BYTES_MAX: Final = 4096
BODY_BYTES_MAX: Final = 256 * 1024
"""A longer body is read piece by piece, by aiohttp."""
_REMEMBERED_MAX: Final = 2048
"""Lines kept: SDKs repeat most of theirs for hours."""
_REMEMBERED_BYTES_MAX: Final = 256

_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}):[ \t]*([\x20-\x7e]*?)[ \t]*")
_REQUEST_LINE: Final = re.compile(rb"POST (/[!-<>@-~]*)(?:\?([!-~]*))? HTTP/1\.1")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_UNUSUAL: Final = frozenset(
    {
        *("transfer-encoding", "expect", "upgrade", "connection", "te", "trailer", "keep-alive", "proxy-connection"),
        *("origin", "access-control-request-method", "x-request-id"),
    }
)
"""Headers that change how a request is read or answered; `Connection: keep-alive` alone changes nothing."""


class Line(NamedTuple):
    """A header line, read."""

    name: str
    """Lower-case; empty for a line that is only for aiohttp to judge."""
    value: str


class Head(NamedTuple):
    """The head of a simple request."""

    path: str
    query: str
    headers: Mapping[str, str]
    """Lower-case names."""
    about: wire.Head
    """What they say of the request."""
    body_at: int
    """Where the body begins."""
    length: int
    """The whole request, head and body, in bytes."""


_REMEMBERED_HEADS_MAX: Final = 512
_REMEMBERED_HEAD_BYTES_MAX: Final = 1024
"""Whole heads kept: a client that tells no time sends the same one again and again."""

_heads: dict[bytes, Head] = {}
_lines: dict[bytes, Line] = {}
_targets: dict[bytes, tuple[str, str]] = {}
_ODD: Final = Line("", "")
_HARMLESS: Final = Line("connection", "keep-alive")


def read_head(data: bytes) -> Head | None:
    """Read the head of a request that begins with `data`'s first byte; None where it is not simple or not whole."""
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
    if end < 0:
        return None
    raw = data[:end]
    head = _heads.get(raw) or _read_whole(raw)
    if head is not None and end <= _REMEMBERED_HEAD_BYTES_MAX:
        if len(_heads) >= _REMEMBERED_HEADS_MAX:
            _heads.clear()
        _heads[raw] = head
    return head


def _read_whole(raw: bytes) -> Head | None:
    first, *rest = raw.split(b"\r\n")
    target = _targets.get(first) or _read_target(first)
    if target is None:
        return None
    headers: dict[str, str] = {}
    for line in rest:
        name, value = _lines.get(line) or _read_line(line)
        if not name or name in headers:
            return None
        headers[name] = value
    length = headers.get("content-length", "")
    if not length or "host" not in headers:
        return None
    size = int(length)
    if size > BODY_BYTES_MAX:
        return None
    try:
        about = wire.read_head(headers, target[1])
    except Refusal:
        return None
    body_at = len(raw) + len(b"\r\n\r\n")
    return Head(*target, headers, about, body_at, body_at + size)


def _read_target(line: bytes) -> tuple[str, str] | None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None or b"%" in match[1] or b"//" in match[1]:
        return None
    target = match[1].decode("ascii"), (match[2] or b"").decode("ascii")
    if len(_targets) < _REMEMBERED_MAX and not target[1] and len(line) <= _REMEMBERED_BYTES_MAX:
        _targets[line] = target
    return target


def _read_line(raw: bytes) -> Line:
    match = _HEADER.fullmatch(raw)
    if match is None:
        return _ODD
    line = Line(match[1].decode("ascii").lower(), match[2].decode("ascii"))
    if line.name in _UNUSUAL and line != _HARMLESS:
        return _ODD
    if line.name == "content-length" and not _LENGTH.fullmatch(match[2]):
        return _ODD
    if len(raw) <= _REMEMBERED_BYTES_MAX:
        if len(_lines) >= _REMEMBERED_MAX:
            _lines.clear()
        _lines[raw] = line
    return line
