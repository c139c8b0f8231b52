"""What the front door says: the one place where a refusal becomes an HTTP answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.errors import Refusal
    from relay.wire import Rejected

ACCEPTED: Final = b'{"success":true}'
"""A JSON object that says so: the Rust SDK core re-sends after a 2xx with any other body."""
SERVER: Final = "event-relay"
"""Instead of the names and versions of what we are built on."""
_JSON: Final = "application/json"


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Refused(msgspec.Struct, frozen=True):
    success: bool
    error: _Error


class _Unusable(msgspec.Struct, frozen=True):
    index: int
    message: str


class _Partly(msgspec.Struct, frozen=True):
    success: bool
    rejected: list[_Unusable]


def accepted(rejected: Sequence[Rejected], headers: Mapping[str, str]) -> web.Response:
    """202: every usable event is on disk; `rejected` names those that were set aside."""
    body = ACCEPTED
    if rejected:
        body = msgspec.json.encode(_Partly(True, [_Unusable(one.index, one.message) for one in rejected]))
    return web.Response(body=body, status=202, content_type=_JSON, headers=headers)


def refused(refusal: Refusal, headers: Mapping[str, str]) -> web.Response:
    """Say what was wrong and whether to come back."""
    response = web.Response(body=_error_body(refusal), status=refusal.status, content_type=_JSON, headers=headers)
    if refusal.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_seconds)
    return response


def refused_raw(refusal: Refusal) -> bytes:
    """Say the same in the bytes of a whole HTTP answer, for a connection whose request nobody will read."""
    body = _error_body(refusal)
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        f"Content-Type: {_JSON}",
        f"Content-Length: {len(body)}",
        f"Server: {SERVER}",
        "Connection: close",
    ]
    if refusal.retry_after_seconds is not None:
        lines.append(f"Retry-After: {refusal.retry_after_seconds}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def empty(headers: Mapping[str, str]) -> web.Response:
    """204, for OPTIONS."""
    return web.Response(status=204, headers=headers)


def _error_body(refusal: Refusal) -> bytes:
    return msgspec.json.encode(_Refused(False, _Error(refusal.code, str(refusal))))
