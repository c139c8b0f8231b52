"""What the front door says: the one place where a refusal becomes an HTTP answer."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
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
_ACCEPTED_HEAD: Final = (
    f"HTTP/1.1 202 Accepted\r\nContent-Type: {_JSON}\r\nContent-Length: {len(ACCEPTED)}\r\nServer: {SERVER}"
).encode()


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


def accepted_raw(request_id: str) -> bytes:
    """Say 202 in the bytes of a whole HTTP answer."""
    return b"%s\r\nDate: %s\r\nX-Request-Id: %s\r\n\r\n%s" % (
        _ACCEPTED_HEAD,
        _date(int(time.time())),
        request_id.encode("ascii"),
        ACCEPTED,
    )


def refused_raw(refusal: Refusal, request_id: str | None = None) -> bytes:
    """Refuse in the bytes of a whole HTTP answer; without an id it answers no whole request, and closes."""
    body = _error_body(refusal)
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        f"Content-Type: {_JSON}",
        f"Content-Length: {len(body)}",
        f"Server: {SERVER}",
        f"Date: {_date(int(time.time())).decode()}",
        "Connection: close" if request_id is None else f"X-Request-Id: {request_id}",
    ]
    if refusal.retry_after_seconds is not None:
        lines.append(f"Retry-After: {refusal.retry_after_seconds}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def empty(headers: Mapping[str, str]) -> web.Response:
    """204, for OPTIONS."""
    return web.Response(status=204, headers=headers)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Write a date as RFC 9110 §5.6.7 has it; once a second."""
    return formatdate(second, usegmt=True).encode()


def _error_body(refusal: Refusal) -> bytes:
    return msgspec.json.encode(_Refused(False, _Error(refusal.code, str(refusal))))
