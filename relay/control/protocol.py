r"""What goes over the control socket: a line of JSON for each request, and one or more for its answer; pure.

    → {"version":1,"request":{"verb":"replay","letters":{"reason":"expired"}}}
    ← {"kind":"progress","chunks":200,"events":18211}
    ← {"kind":"done","chunks":312,"events":24000,"lanes":[]}

A connection may carry several requests, one after the other. A version that is not ours is refused with ours in the
text: tool and relay are then of different releases.
"""

from __future__ import annotations

from typing import Final

import msgspec

VERSION: Final = 1
SOCKET_NAME: Final = "control"
LINE_BYTES_MAX: Final = 1 << 20


class Letters(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which dead letters are meant: those for which all of this is true."""

    ids: tuple[int, ...] = ()
    lane: str = ""
    reason: str = ""
    older_than_seconds: float | None = None
    """Since they died."""


class _Request(msgspec.Struct, frozen=True, tag_field="verb", tag=str.lower, forbid_unknown_fields=True):
    """What is asked for; a lane is called by its fingerprint, `default`, or its number."""


class Lanes(_Request, frozen=True):
    """Every lane and how it stands."""


class Pause(_Request, frozen=True):
    """Hold a lane until `Resume`, over restarts too."""

    lane: str


class Resume(_Request, frozen=True):
    """Let a lane go on; one that is parked or backs off tries at once."""

    lane: str


class Rekey(_Request, frozen=True):
    """Have what a lane holds travel under another key; the empty key is the default lane's."""

    lane: str
    key: str


class Replay(_Request, frozen=True):
    """Queue dead letters anew."""

    letters: Letters


class Purge(_Request, frozen=True):
    """Drop dead letters for good."""

    letters: Letters


Request = Lanes | Pause | Resume | Rekey | Replay | Purge


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """One lane; its key never leaves the queue."""

    number: int
    fingerprint: str
    state: str
    """active · backing_off · parked · paused; `stored` where no relay runs"""
    events: int
    bytes: int
    in_flight_events: int = 0
    dead_chunks: int = 0
    oldest_accepted_at_ms: int | None = None
    next_try_in_seconds: float | None = None
    error: str = ""


class _Reply(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """A line of an answer; all but Progress end it."""


class Progress(_Reply, frozen=True):
    """So far."""

    chunks: int
    events: int


class Done(_Reply, frozen=True):
    """It is on disk."""

    chunks: int = 0
    events: int = 0
    lanes: tuple[LaneView, ...] = ()
    """Those that were changed."""


class LaneList(_Reply, frozen=True):
    """The answer to Lanes."""

    lanes: tuple[LaneView, ...]
    recovering: bool = False
    """The numbers still grow: an earlier run's index is loading."""


class Refused(_Reply, frozen=True):
    """It was not done, or not all of it."""

    code: str
    """version · malformed · unknown_lane · disk_error · busy · disconnected"""
    message: str


Reply = Progress | Done | LaneList | Refused


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    request: msgspec.Raw = msgspec.Raw(b"null")


_envelopes: Final = msgspec.json.Decoder(_Envelope)
_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_replies: Final[msgspec.json.Decoder[Reply]] = msgspec.json.Decoder(Reply)


def encode_request(request: Request) -> bytes:
    """Give the line, its end included."""
    return msgspec.json.encode(_Envelope(VERSION, msgspec.Raw(msgspec.json.encode(request)))) + b"\n"


def decode_request(line: bytes) -> Request | Refused:
    """Read a line; what cannot be done is a Refused that says why."""
    try:
        envelope = _envelopes.decode(line)
        if envelope.version != VERSION:
            return Refused(
                "version",
                f"this relay speaks version {VERSION} of the control protocol, the tool {envelope.version}; "
                "use the tool of the release that runs",
            )
        return _requests.decode(envelope.request)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return Refused("malformed", f"not a request of the control protocol: {exc}")


def encode_reply(reply: Reply) -> bytes:
    """Give the line, its end included."""
    return msgspec.json.encode(reply) + b"\n"


def decode_reply(line: bytes) -> Reply:
    """Read a line; what makes no sense is a Refused that says so."""
    try:
        return _replies.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return Refused("malformed", f"the relay's answer makes no sense to this release: {exc}")
