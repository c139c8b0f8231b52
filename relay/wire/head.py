"""Reads what a request says about itself beside its body: key, clock, session, and the headers that travel on.

Header names come in any case; browsers send the same facts in the query instead, since a header would cost them a
preflight:

    statsig-api-key          k      statsig-sdk-type           st
    statsig-client-time      t      statsig-sdk-version        sv
    (gzip body)              gz=1   statsig-server-session-id  sid

Where both are given the header wins. Nothing but these decides which requests may share a batch, so cookies, counts,
retries and times are never part of the block that travels.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import msgspec

from relay.errors import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

SKEW_MS_MAX: Final = 24 * 3_600_000
"""A clock further off is not believed."""

SKEW_MS_MIN: Final = 2_000
"""Up to here it is the way of the request that we see, not the client's clock."""

RETRY_SKEW_MS_MAX: Final = 5 * 60_000
"""One SDK sends a retry with the time of its first try; so much of a delay is the wait between them."""

KEY_CHARACTERS_MAX: Final = 512
HEADER_CHARACTERS_MAX: Final = 1_024
"""A longer value does not travel: the block is stored with every chunk."""

_TRAVELLING: Final = (  # sorted, as the block is
    "statsig-sdk-language-version",
    "statsig-sdk-type",
    "statsig-sdk-version",
    "statsig-server-session-id",
    "statsig-stable-id",
    "user-agent",
    "x-request-service",
)
HEADERS_BYTES_MAX: Final = sum(len(name) + 3 + 4 * HEADER_CHARACTERS_MAX for name in _TRAVELLING)
"""What the block can grow to: every value as long as it may be, in characters of four bytes."""

_SESSION: Final = "statsig-server-session-id"
_BATCH_ID: Final = "statsig-relay-batch-id"
_IN_QUERY: Final = {"statsig-sdk-type": "st", "statsig-sdk-version": "sv", _SESSION: "sid"}
_BLANKS: Final = " \t"
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and bytes that were no UTF-8
_NOT_A_RETRY: Final = ("", "0", "false")
_BLOCKS_MAX: Final = 1_024
_BLOCK_CACHED_BYTES_MAX: Final = 1_024
_blocks: dict[tuple[str, ...], bytes] = {}  # a process sends the same few blocks for hours


class Head(msgspec.Struct, frozen=True):
    """What a request says about itself."""

    key: str
    """The API key; empty where the request carries none."""
    client_time_ms: int | None
    """The client's clock when it sent this, Unix milliseconds; None where it is absent or unreadable."""
    session_id: str
    """The SDK's session; empty where there is none, and then no re-send can be recognised."""
    is_retry: bool
    gzip_claimed: bool
    """The browser SDK's `gz=1`."""
    batch_id: str
    """Another relay's name for this batch, the same at each of its attempts; empty from everybody else."""
    headers: bytes
    """The block that travels on with the events: `name: value` lines, lower-case and sorted."""

    def skew_ms(self, received_at_ms: int) -> int | None:
        """Say how far the client's clock is behind ours; None where it told no time that can be believed.

        A clock more than a day off counts as none told: the events then go out without STATSIG-CLIENT-TIME. To claim
        skew 0 for it would vouch for a clock known to be wrong, and to pass the claim on would let one bad header
        move events by years.
        """
        if self.client_time_ms is None:
            return None
        skew = received_at_ms - self.client_time_ms
        if abs(skew) > SKEW_MS_MAX:
            return None
        if abs(skew) <= SKEW_MS_MIN or (self.is_retry and 0 < skew <= RETRY_SKEW_MS_MAX):
            return 0
        return skew


def read_head(headers: Mapping[str, str], query_string: str) -> Head:
    """Read a request's headers, by a mapping that ignores case, and its raw query.

    Raises Unauthorized where the key could not travel in a header: too long, or not printable ASCII.
    """
    get = headers.get
    query = _read_query(query_string) if query_string else {}
    values = [get(name, "") for name in _TRAVELLING]
    if query:
        values = [
            value or query.get(_IN_QUERY.get(name, ""), "") for name, value in zip(_TRAVELLING, values, strict=True)
        ]
    client_time = _read_time(get("statsig-client-time", ""))
    retries = get("statsig-retry-count") or get("statsig-retry") or ""
    return Head(
        key=_checked_key(get("statsig-api-key") or query.get("k", "")),
        client_time_ms=_read_time(query.get("t", "")) if client_time is None else client_time,
        session_id=values[_TRAVELLING.index(_SESSION)],
        is_retry=retries.strip().lower() not in _NOT_A_RETRY,
        gzip_claimed=query.get("gz") == "1",
        batch_id=get(_BATCH_ID, ""),
        headers=_block(tuple(values)),
    )


def _read_query(query_string: str) -> dict[str, str]:
    """Give the query's fields by name; the first of a name wins."""
    return dict(reversed(parse_qsl(query_string)))


def _checked_key(key: str) -> str:
    key = key.strip(_BLANKS)
    if len(key) > KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
        raise Unauthorized(f"the API key is no key: more than {KEY_CHARACTERS_MAX} or other than printable characters")
    return key


def _read_time(text: str) -> int | None:
    """Read a time in milliseconds, an integer or a float; None where it is neither."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        time = float(text)
    except ValueError:
        return None
    return int(time) if math.isfinite(time) else None


def _block(values: tuple[str, ...]) -> bytes:
    """Write the travelling headers' values as a block, or find it where it was written before."""
    block = _blocks.get(values)
    if block is None:
        block = "".join(
            f"{name}: {text}\n"
            for name, value in zip(_TRAVELLING, values, strict=True)
            if (text := value.strip(_BLANKS)) and len(text) <= HEADER_CHARACTERS_MAX and not _UNFIT.search(text)
        ).encode()
        if sum(map(len, values)) <= _BLOCK_CACHED_BYTES_MAX:
            if len(_blocks) >= _BLOCKS_MAX:
                _blocks.clear()
            _blocks[values] = block
    return block
