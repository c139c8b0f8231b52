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
_COMMA: Final = ord(",")
_OPENING: Final = b"{["


def _spellings(name: str) -> bytes:
    """Match a name's bytes in a string, each letter as it is or escaped."""
    return b"".join(b"(?:%c|\\\\u00(?i:%02x))" % (letter, letter) for letter in name.encode())


_USER: Final = _spellings("user") + b'"'
_PRIVATE: Final = _spellings("privateAttributes") + b'"'
_COLON: Final = SPACE + b":" + SPACE
_TOKEN: Final = re.compile(
    b'"(?:%b()|%b())|%b(?:%b)?|([{}\\[\\]])|(")' % (_USER + _COLON, _PRIVATE + _COLON, QUOTED, _COLON + QUOTED),
    re.DOTALL,
)
"""The next key that is one of the two names, other string (a key with the string that is its value), bracket, or quote
that opens no string. No look-ahead in a possessive group: CPython before 3.11.5 runs over what it should stop at."""
_USER_KEY, _PRIVATE_KEY, _BRACKET = 1, 2, 3
_JUST_NULL: Final = rb"null" + SPACE + rb"[,}]"  # to its end, or what follows a null would pass with it
_NULL: Final = re.compile(_JUST_NULL)
_HOLDING: Final = re.compile(rb'privateAttributes"' + _COLON + rb"(?!" + _JUST_NULL + rb")")
"""A member of that name with more than null in it."""


def may_hold_private(body: bytes) -> bool:
    """Tell whether the name stands anywhere over more than null, plain or escaped; the usual body takes one search.

    From the end: past 30,000 bytes that takes CPython half as long as from the start (3.11, measured 2026-11).
    """
    if body.rfind(b"privateAttribute") >= 0 and _HOLDING.search(body) is not None:
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
    user_at = resume = -1
    for token in _TOKEN.finditer(text):
        what = token.lastindex
        if what is None or (at := token.start()) < resume:
            continue
        if what == _BRACKET:
            if text[at] in _OPENING:
                users.append(at == user_at)
            elif users:
                users.pop()
            else:
                raise NotJson(at)
        elif what == _USER_KEY:
            user_at = token.end()
        elif what != _PRIVATE_KEY:
            raise NotJson(at)
        elif users and users[-1] and not _NULL.match(text, token.end()):
            resume = _cut(text, at, skip(text, token.end()).end, cuts)
    if users:
        raise NotJson(len(text))
    return cuts


def _cut(text: bytes, start: int, end: int, cuts: list[Edit]) -> int:
    """Add the cut of the member `start:end` with one of its commas; give the position behind it."""
    after = gap(text, end)
    if text[after : after + 1] == b",":
        cuts.append(Edit(start, after + 1, b""))
        return after + 1
    if text[after : after + 1] != b"}":
        raise NotJson(after)  # what follows such a value may be a part of it, and would be kept
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
