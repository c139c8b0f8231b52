"""Cuts privateAttributes out of every user in a body, and nothing else.

Users stand at the top level and in each event; SDKs and people nest events in metadata as well, so a user is an object
under the name `user`, at whatever depth. A privateAttributes member of anything else is the app's own data and stays.
So does one that is null: it holds nothing, and statsig-node writes it into every event.
"""

from __future__ import annotations

import re
from typing import Final

from relay.wire.scanner import QUOTED, SPACE, Edit, NotJson, gap, skip, splice

_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_WHITE: Final = b" \t\n\r"
_STEP_BYTES: Final = 256
_QUOTE, _COMMA = b'",'
_NULL: Final = b"null"
_OPENING: Final = b"{["


def _spellings(name: str) -> bytes:
    """Match a name's bytes in a string, each letter as it is or escaped."""
    return b"".join(b"(?:%c|\\\\u00(?i:%02x))" % (letter, letter) for letter in name.encode())


_USER: Final = _spellings("user") + b'"'
_PRIVATE: Final = _spellings("privateAttributes") + b'"'
_COLON: Final = SPACE + b":" + SPACE
_TO_MARK: Final = re.compile(
    rb'[^"{}\[\]]*+(?:(?!"(?:' + _USER + b"|" + _PRIVATE + b"))" + QUOTED + rb'[^"{}\[\]]*+)*+', re.DOTALL
)
"""Runs up to the next bracket or string that is one of the two names."""
_NAME: Final = re.compile(b'"(?:' + _USER + _COLON + b"()|" + _PRIVATE + _COLON + b"()|" + QUOTED[1:] + b")", re.DOTALL)
_USER_KEY, _PRIVATE_KEY = 1, 2
_HOLDING: Final = re.compile(rb'privateAttributes"[ \t\n\r]*+:[ \t\n\r]*+(?!null)')
"""A member of that name with more than null in it."""


def may_hold_private(body: bytes) -> bool:
    """Tell whether the name stands anywhere over more than null, plain or escaped; the usual body takes one search."""
    if b"privateAttributes" in body and _HOLDING.search(body) is not None:
        return True
    return b"\\" in body and _ESCAPED_LETTER.search(body) is not None


def without_private(body: bytes) -> bytes:
    """Give the body without its users' privateAttributes, every other byte as it was; raises NotJson."""
    cuts = _find(body)
    return splice(body, cuts) if cuts else body


def _find(text: bytes) -> list[Edit]:
    """Walk the whole text once, keeping for every open bracket whether it is a user's."""
    cuts: list[Edit] = []
    users = bytearray()  # a byte each, for there may be as many as the text has bytes
    at, user_at = 0, -1
    to_mark = _TO_MARK.match
    while (at := to_mark(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches anywhere
        mark = text[at]
        if mark in _OPENING:
            users.append(at == user_at)
            at += 1
        elif mark != _QUOTE:
            if not users:
                raise NotJson(at)
            users.pop()
            at += 1
        else:
            key = _NAME.match(text, at)
            if key is None:
                raise NotJson(at)
            start, at = at, key.end()
            if key.lastindex == _USER_KEY:
                user_at = at
            elif key.lastindex == _PRIVATE_KEY and users and users[-1] and not text.startswith(_NULL, at):
                at = _cut(text, start, skip(text, at).end, cuts)
    if users:
        raise NotJson(len(text))
    return cuts


def _cut(text: bytes, start: int, end: int, cuts: list[Edit]) -> int:
    """Add the cut of the member `start:end` with one of its commas; give the position behind it."""
    comma = gap(text, end)
    if text[comma : comma + 1] == b",":
        cuts.append(Edit(start, comma + 1, b""))
        return comma + 1
    start = _rstrip(text, start)
    while cuts and cuts[-1].end == start:  # the last ones of an object go together, and the comma before them
        start = _rstrip(text, cuts.pop().start)
    if text[start - 1] == _COMMA:
        start -= 1
    cuts.append(Edit(start, end, b""))
    return end


def _rstrip(text: bytes, at: int) -> int:
    """Give the position behind the last byte before `at` that is no white space."""
    kept = 0
    while not kept and at:
        begin = max(0, at - _STEP_BYTES)
        kept = len(text[begin:at].rstrip(_WHITE))
        at = begin
    return at + kept
