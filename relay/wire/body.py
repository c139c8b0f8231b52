"""Reads an inflated body into what is stored: events as raw bytes, the envelope around them, and what cannot be taken.

    {"events":[ event, event … ], "user":{…}, "statsigMetadata":{…} }
                └── text ──┘      └────────── envelope ──────────┘

The usual body takes one pass in C, over where its `events` array must be, that checks every event; the few bytes around
the array were mostly seen before. Its text is then a single slice. Whatever is not usual goes the exact way, event by
event: NaN and lone surrogates, invalid UTF-8, an event that is unusable, too large or without a time. Both ways agree;
the exact one is only slower.

Nothing is ever re-encoded. Members that must not be kept (privateAttributes of users) and times that are missing are
cut out and put in as bytes before and after; all other bytes of an event are what the app sent.

No error text holds anything of the body but positions and types.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from relay.errors import InvalidRequest, TooLarge
from relay.wire import scanner
from relay.wire.events import TIMED, Unusable, count_suspects, is_json, is_utf8, kind, probe, stamp
from relay.wire.private import may_hold_private, without_private

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from relay.wire.events import Probe

BRACKETS_MAX: Final = 1_000_000
"""Opening brackets in a body that is walked by the scanner, which takes about 2 µs for each in all its passes;
recorded events have one in 40 bytes or more, so it takes 40 MB of them to come near (measured 2026-11)."""

_BOM: Final = b"\xef\xbb\xbf"
_EVENTS_KEY: Final = re.compile(rb'"events"[ \t\n\r]*+:[ \t\n\r]*+')
_ESCAPED: Final = re.compile(rb"\\u00[4-7]")
_STAND_IN: Final = b"0"
_END: Final = re.compile(rb"[ \t\n\r]*+\}[ \t\n\r]*+\Z")
_CACHED_BYTES_MAX: Final = 1_024
_SMALLEST_EVENT_BYTES: Final = len(b'{"eventName":"a"},')


class Limits(msgspec.Struct, frozen=True):
    """The operator's absolute caps on one request; what is past them can never be accepted."""

    event_bytes_max: int
    events_per_request_max: int
    envelope_bytes_max: int
    """Of everything beside the events: it is stored with every chunk of them."""
    nesting_max: int = scanner.NESTING_MAX
    """Levels of brackets in one event or one member of the envelope, where the exact way reads it; the usual way
    takes up to about 900, what msgspec takes."""


class Rejected(msgspec.Struct, frozen=True):
    """An event that cannot be taken, in a request of which others can."""

    index: int
    reason: str
    """invalid · too_large"""
    message: str
    raw: bytes
    """Its bytes as the app sent them, private attributes of users left out where they could be found."""


class Parsed(msgspec.Struct, frozen=True):
    """A body that is taken, as a whole or in part."""

    text: bytes
    """The usable events' raw bytes, joined by commas; white space may stand around the commas."""
    events: int
    """How many those are, at least one."""
    envelope: bytes
    """The raw members beside `events`, in order, joined by commas, no braces; empty where there are none."""
    rejected: tuple[Rejected, ...]
    suspects: Mapping[str, int]
    """Usable events that Statsig is documented to drop, by reason: name_characters, name_length, metadata_size."""
    stamped: bool = False
    """Some events brought no time of their own and were given one: their bytes do not tell a repeat."""


class _Shell(msgspec.Struct, gc=False):
    events: msgspec.Raw


class _Layout(NamedTuple):
    """What the top level holds: the range of the events' array, and the envelope."""

    events: scanner.Value
    envelope: bytes


_SHELL: Final = msgspec.json.Decoder(_Shell)


def parse_body(body: bytes, *, limits: Limits, now_ms: int, skew_ms: int | None, strip_private: bool) -> Parsed:
    """Read an inflated body that arrived at `now_ms` from a client whose clock is `skew_ms` behind ours.

    Events without a time get the client's time of sending, `now_ms − skew_ms`. With `strip_private` no user's
    privateAttributes are in anything that is returned.
    Raises InvalidRequest for what can never be accepted and TooLarge past a limit, both for the request as a whole.
    """
    body = body.removeprefix(_BOM)
    try:
        if strip_private and may_hold_private(body):
            _check_brackets(body)
            body = without_private(body)
        return parse_usual(body, limits=limits, strip_private=False) or _read_exact(
            body, limits, now_ms - (skew_ms or 0)
        )
    except scanner.NotJson as exc:
        raise InvalidRequest(f"the body is not JSON: byte {exc.at} of {len(body)} cannot stand there") from None


def parse_usual(body: bytes, *, limits: Limits, strip_private: bool) -> Parsed | None:
    """Read a body of which every event is usable, timed and within its size, and nothing has to be cut out.

    None for any other: whether that can be taken, `parse_body` tells. What this costs is bounded by the body's size
    alone, whoever wrote it. Raises InvalidRequest or TooLarge for the body as a whole, as parse_body would.
    """
    if not is_utf8(body) or (strip_private and may_hold_private(body)):
        return None
    key = _EVENTS_KEY.search(body)
    if key is None:
        return None
    for array in _arrays(body, key.end()):
        if len(array) > limits.event_bytes_max or _may_be_too_many(array, limits.events_per_request_max):
            return None
        try:
            events = TIMED.decode(array)
        except (msgspec.DecodeError, RecursionError):
            continue
        envelope = _envelope_around(body, key.end(), len(array), limits.envelope_bytes_max)
        if envelope is None or not events or len(events) > limits.events_per_request_max:
            return None
        text = bytes(array[1:-1]).strip(b" \t\n\r")
        return Parsed(text, len(events), envelope, rejected=(), suspects=count_suspects(events))
    return None


def _arrays(body: bytes, start: int) -> Iterator[memoryview]:
    """Yield what the events' array may be, which begins at `start`: where it nearly always ends, then what is found.

    It nearly always ends behind the last object that ends an array; finding its end takes the decoder a pass more.
    """
    view = memoryview(body)
    yield view[start : body.rfind(b"}]") + len(b"}]")]
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        yield view[start : start + len(_SHELL.decode(body).events)]


def _may_be_too_many(array: memoryview, events_max: int) -> bool:
    """Tell whether decoding could build more than `events_max` events; every event that decodes spells eventName."""
    if len(array) <= events_max * _SMALLEST_EVENT_BYTES:
        return False
    text = bytes(array)
    return text.count(b'"eventName"') > events_max or _ESCAPED.search(text) is not None


def _envelope_around(body: bytes, start: int, size: int, envelope_bytes_max: int) -> bytes | None:
    """Read what stands around an array, exactly; None where that array is not the one value of the body's `events`.

    The array, found by its bytes, gives way to a stand-in, and the short rest is scanned member by member: only if the
    stand-in is the value of `events` was this the array. A decoder would hide members that stand twice.
    """
    rest = body[:start] + _STAND_IN + body[start + size :]
    read = _envelope_cached if len(rest) <= _CACHED_BYTES_MAX else _envelope
    return read(rest, start, envelope_bytes_max)


def _envelope(rest: bytes, start: int, envelope_bytes_max: int) -> bytes | None:
    try:
        layout = _layout(rest, envelope_bytes_max) if is_json(rest) else None
    except scanner.NotJson:
        return None
    if layout is None:
        return None
    return layout.envelope if layout.events == scanner.Value(start, start + len(_STAND_IN), 0) else None


_envelope_cached: Final = lru_cache(maxsize=256)(_envelope)  # SDKs send the same few envelopes for hours


def _layout(text: bytes, envelope_bytes_max: int) -> _Layout:
    """Find the top level's members; raises NotJson, InvalidRequest or TooLarge where they cannot be taken."""
    events: scanner.Value | None = None
    pieces: list[bytes] = []
    room = envelope_bytes_max + 1  # the first piece has no comma before it
    start = scanner.gap(text, 0)
    end = start + 1
    for member in scanner.members(text, start):
        end = member.value.end
        if member.name != "events":
            room -= member.key_end - member.key_start + end - member.value.start + len(b":,")
            if room < 0:
                raise TooLarge(f"over {envelope_bytes_max} bytes stand beside `events` (listen.envelope_bytes_max)")
            pieces.append(text[member.key_start : member.key_end] + b":" + text[member.value.start : end])
        elif events:
            raise InvalidRequest("`events` stands twice in the body")
        else:
            events = member.value
    if not _END.match(text, end):
        raise scanner.NotJson(end)
    if not events:
        raise InvalidRequest("the body has no `events`")
    return _Layout(events, b",".join(pieces))


def _read_exact(body: bytes, limits: Limits, sent_ms: int) -> Parsed:
    """Read any body, event by event; `sent_ms` is the client's time for events without one."""
    _check_start(body)
    _check_brackets(body)
    layout = _layout(body, limits.envelope_bytes_max)
    _check_envelope(layout.envelope, limits.nesting_max)
    usable: list[bytes] = []
    probes: list[Probe] = []
    rejected: list[Rejected] = []
    for index, value in enumerate(_event_values(body, layout.events, limits.events_per_request_max)):
        raw = body[value.start : value.end]
        try:
            event = _examine(raw, value.depth, limits)
        except Unusable as exc:
            rejected.append(Rejected(index, exc.reason, f"the event {exc}", raw))
        else:
            usable.append(stamp(raw, event, sent_ms) if event.without_time() else raw)
            probes.append(event)
    if not usable:
        raise _none_usable(rejected)
    return Parsed(
        text=b",".join(usable),
        events=len(usable),
        envelope=layout.envelope,
        rejected=tuple(rejected),
        suspects=count_suspects(probes),
        stamped=any(event.without_time() for event in probes),
    )


def _examine(event: bytes, depth: int, limits: Limits) -> Probe:
    """Look at one event's bytes, cheap checks first; raises Unusable with the reason."""
    if len(event) > limits.event_bytes_max:
        raise Unusable(f"has more than {limits.event_bytes_max} bytes (listen.event_bytes_max)", reason="too_large")
    if depth > limits.nesting_max:
        raise Unusable(f"is nested deeper than {limits.nesting_max} levels")
    if not is_utf8(event):
        raise Unusable("is not UTF-8")
    return probe(event)


def _none_usable(rejected: list[Rejected]) -> InvalidRequest | TooLarge:
    """Say why a request is refused of which every event was rejected: too large only where all were."""
    kind_of = TooLarge if all(event.reason == "too_large" for event in rejected) else InvalidRequest
    example = next(event for event in rejected if kind_of is TooLarge or event.reason == "invalid")
    return kind_of(f"none of the {len(rejected)} events is usable; events[{example.index}]: {example.message}")


def _check_brackets(body: bytes) -> None:
    """Refuse what is made to be slow before it is walked; brackets inside strings count, for counting is cheap."""
    if body.count(b"[") + body.count(b"{") > BRACKETS_MAX:
        raise InvalidRequest(f"the body has more than {BRACKETS_MAX} opening brackets")


def _check_start(body: bytes) -> None:
    """Refuse what does not even begin like a JSON object in UTF-8, saying so."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        raise InvalidRequest("the body is UTF-16 or UTF-32; JSON travels as UTF-8")
    at = scanner.gap(body, 0)
    if at == len(body):
        raise InvalidRequest("the body is empty")
    if body[at : at + 1] != b"{":
        raise InvalidRequest("the body is no JSON object: it does not begin with a brace")


def _check_envelope(envelope: bytes, nesting_max: int) -> None:
    """Refuse members beside `events` that no decoder would take; they travel with every event."""
    members = b"{" + envelope + b"}"
    if not is_utf8(members):
        raise InvalidRequest("what stands beside `events` is not UTF-8")
    if scanner.skip(members, 0).depth - 1 > nesting_max:
        raise InvalidRequest(f"what stands beside `events` is nested deeper than {nesting_max} levels")
    if not is_json(members):
        raise InvalidRequest("what stands beside `events` is not JSON")


def _event_values(body: bytes, array: scanner.Value, events_max: int) -> list[scanner.Value]:
    if body[array.start : array.start + 1] != b"[":
        raise InvalidRequest(f"`events` is {kind(body[array.start : array.start + 1])}, not an array")
    values = list(islice(scanner.elements(body, array.start), events_max + 1))
    if not values:
        raise InvalidRequest("`events` is empty")
    if len(values) > events_max:
        raise TooLarge(f"the request has more than {events_max} events (listen.events_per_request_max)")
    return values
