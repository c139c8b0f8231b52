"""The second line of defence: takes secrets, people and foreign objects out of a log line; pure.

The first line is that no call hands them over. Here, fields with certain names are hidden, texts are searched for keys
and credentials, and of an object that is no plain value only its type is told: its repr could say anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

HIDDEN: Final = "[hidden]"
TEXT_CHARACTERS_MAX: Final = 4096
TRACEBACK_CHARACTERS_MAX: Final = 16_384
ITEMS_MAX: Final = 64
DEPTH_MAX: Final = 4

HIDDEN_NAMES: Final = frozenset(
    """key api_key apikey api_keys statsig_api_key k authorization proxy_authorization cookie set_cookie password passwd
    secret token credentials user user_id userid email ip remote_ip user_agent useragent custom custom_ids customids
    private_attributes privateattributes metadata value query query_string""".split()  # noqa: SIM905  reads better
)
HIDDEN_NAMES_UNLESS_A_NUMBER: Final = frozenset({"events", "headers", "body", "envelope", "text", "request", "chunk"})

_SECRETS: Final = re.compile(
    r"(?P<key>\b(?:secret|client|console)-)[A-Za-z0-9]{16,}"
    r"|(?P<url>://)[^/\s@]+@"
    r"|(?P<query>[?&]k=)[^&\s'\"]+"
    r"|(?P<header>\b(?:statsig-api-key|(?:proxy-)?authorization|(?:set-)?cookie)['\"]?\s*[:=,]\s*)[^\r\n]+",
    re.IGNORECASE,
)


def scrub(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Give the line's fields with plain and harmless values only; a structlog processor."""
    return {str(name): _field(str(name), value, DEPTH_MAX) for name, value in fields.items()}


def scrub_text(text: str) -> str:
    """Give the text without keys, credentials and cookies."""
    return _SECRETS.sub(_hide, text)


def _field(name: str, value: object, depth: int) -> object:
    known = name.lower().replace("-", "_")
    if known in HIDDEN_NAMES and value is not None:
        return HIDDEN
    if known in HIDDEN_NAMES_UNLESS_A_NUMBER and not isinstance(value, int | float | None):
        return HIDDEN
    if known == "exception" and isinstance(value, str):
        return scrub_text(value)[-TRACEBACK_CHARACTERS_MAX:]
    return _plain(value, depth)


def _plain(value: object, depth: int) -> object:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity
    if isinstance(value, str | PurePath):
        return _text(str(value))
    if isinstance(value, BaseException):
        return _text(f"{type(value).__name__}: {value}")
    return _composite(value, depth)


def _composite(value: object, depth: int) -> object:
    if depth == 0 or not isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {str(name): _field(str(name), value[name], depth - 1) for name in list(value)[:ITEMS_MAX]}
    return [_plain(item, depth - 1) for item in list(value)[:ITEMS_MAX]]


def _text(text: str) -> str:
    cut = text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "…"
    return scrub_text(cut)


def _hide(match: re.Match[str]) -> str:
    end = "@" if match["url"] else ""
    return f"{match[match.lastgroup or 0]}{HIDDEN}{end}"
