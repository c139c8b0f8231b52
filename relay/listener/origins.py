"""Which web pages may post: any page can send text/plain to localhost, so an Origin has to be allowed by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from relay.errors import OriginForbidden

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PREFLIGHT_SECONDS: Final = 86_400
_ALLOWED_HEADERS: Final = (
    "content-type, content-encoding, statsig-api-key, statsig-client-time, statsig-encoded, statsig-event-count, "
    "statsig-retry-count, statsig-sdk-type, statsig-sdk-version, statsig-server-session-id, statsig-stable-id, "
    "x-request-id"
)
_READABLE_HEADERS: Final = "Retry-After, X-Request-Id"
_ECHOED_CHARACTERS_MAX: Final = 1024
_ORIGIN: Final = re.compile(r"[\x21-\x7e]+", re.ASCII)
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]+", re.ASCII)


class Origins:
    """The operator's list; "*" allows every page."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise OriginForbidden for a page that is not on the list; what sends no Origin is no page."""
        origin = headers.get("Origin")
        if origin is not None and not self._allows(origin):
            raise OriginForbidden(
                "this page's origin may not post here; add it to listen.cors_origins in the relay's configuration"
            )

    def answer_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The CORS headers of an answer: for a forbidden page too, so that it can read why."""
        origin = headers.get("Origin")
        if origin is None:
            return {}
        answer = {"Vary": "Origin"}
        if not _may_echo(origin, _ORIGIN):
            return answer
        answer["Access-Control-Allow-Origin"] = origin
        answer["Access-Control-Expose-Headers"] = _READABLE_HEADERS
        if "Access-Control-Request-Method" in headers and self._allows(origin):
            answer |= _preflight_headers(headers)
        return answer

    def _allows(self, origin: str) -> bool:
        return "*" in self._allowed or origin.lower() in self._allowed


def _preflight_headers(headers: Mapping[str, str]) -> dict[str, str]:
    wanted = headers.get("Access-Control-Request-Headers", "")
    answer = {
        "Access-Control-Allow-Methods": "POST, OPTIONS",
        "Access-Control-Allow-Headers": wanted if _may_echo(wanted, _HEADER_NAMES) else _ALLOWED_HEADERS,
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    if headers.get("Access-Control-Request-Private-Network") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return answer


def _may_echo(text: str, pattern: re.Pattern[str]) -> bool:
    """Tell whether a client's text can stand in a header of ours."""
    return len(text) <= _ECHOED_CHARACTERS_MAX and pattern.fullmatch(text) is not None
