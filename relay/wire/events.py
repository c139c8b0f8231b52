"""What makes an event usable or suspect, and how the text of many is taken apart; raw bytes stay as they are."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from relay.wire import scanner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NAME_CHARACTERS_MAX: Final = 64
VALUE_CHARACTERS_MAX: Final = 128
METADATA_BYTES_MAX: Final = 4_096
"""What Statsig documents for custom events: whatever is past it is dropped in silence."""

_ODD_NAME: Final = re.compile(r"[\\\[\]{}<>#=;&$%|\x00-\x1f\x7f]")
_OWN_EVENTS: Final = ("statsig::", "auto_capture::")  # written by SDKs, the documented bounds are not for them
_ABSENT: Final = msgspec.Raw(b"")
T = TypeVar("T")
_UTF8_STEP_BYTES: Final = 256 << 10


class Timed(msgspec.Struct, gc=False):
    """An event as nearly all are: named, with a time; the usual body decodes as a list of these."""

    event_name: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(name="eventName")
    time: int | float | str
    value: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT


class Probe(msgspec.Struct, gc=False):
    """A usable event of any kind; nothing but its name is checked."""

    event_name: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(name="eventName")
    time: msgspec.Raw = _ABSENT
    value: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT

    def without_time(self) -> bool:
        """Tell whether it does not say when it happened."""
        return bytes(self.time) in (b"", b"null")


class _Named(msgspec.Struct, gc=False):
    event_name: msgspec.Raw = msgspec.field(name="eventName", default=_ABSENT)


TIMED: Final = msgspec.json.Decoder(list[Timed])
_PROBE: Final = msgspec.json.Decoder(Probe)
_NAMED: Final = msgspec.json.Decoder(_Named)
_ANYTHING: Final = msgspec.json.Decoder(msgspec.Raw)
_RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_STRING: Final = msgspec.json.Decoder(str)


class Unusable(ValueError):
    """An event that cannot be taken; its text says why and holds nothing of the event."""

    def __init__(self, text: str, *, reason: str = "invalid") -> None:
        super().__init__(text)
        self.reason = reason


def probe(event: bytes) -> Probe:
    """Look at one event, `event` being all its bytes, in UTF-8; raises Unusable where it is none."""
    try:
        return _decode(_PROBE, event)
    except msgspec.ValidationError:  # raised at the first wrong type, before the rest was read
        raise Unusable(_what_is_wrong(event)) from None
    except msgspec.DecodeError:
        raise Unusable("is not JSON") from None
    except RecursionError:
        raise Unusable("is nested too deep") from None


def is_json(text: bytes) -> bool:
    """Tell whether `text`, which is UTF-8, is one JSON value as Python's json reads it."""
    try:
        _decode(_ANYTHING, text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """Decode strictly, then once more without what only Python's json takes."""
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        return decoder.decode(plain(text))


def plain(text: bytes) -> bytes:
    """Replace what Python's json takes and msgspec refuses by what both take; a text that is no JSON stays none.

    NaN and the infinities become an empty object: nothing can stand beside it that could not stand beside them, and
    inside a string it means nothing, behind a backslash it is as wrong as they are. Halves of surrogate pairs become
    characters of the private use area. So one strict decoder tells what is JSON, and no object is built for it.
    """
    for number in _NO_NUMBERS:
        text = text.replace(number, b"{}")
    if b"\\ud" in text or b"\\uD" in text:
        for half in _HALVES:
            text = text.replace(half, b"\\uee")
    return text


_NO_NUMBERS: Final = (b"-Infinity", b"Infinity", b"NaN")
_HALVES: Final = tuple(f"\\u{d}{n}".encode() for d in "dD" for n in "89abcdefABCDEF")
"""How the halves of surrogate pairs begin. Thirty plain searches cost a tenth of one by pattern (measured 2026-11)."""


def is_utf8(text: bytes) -> bool:
    """Tell whether `text` is UTF-8 throughout (msgspec skips strings unseen); bounded memory at any length."""
    if text.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(text), _UTF8_STEP_BYTES):
            decoder.decode(text[at : at + _UTF8_STEP_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def kind(value: bytes) -> str:
    """Name the JSON type of a value by its first byte."""
    kinds = {b"{": "an object", b"[": "an array", b'"': "a string", b"n": "null", b"t": "a boolean", b"f": "a boolean"}
    return kinds.get(value[:1], "a number")


def _what_is_wrong(event: bytes) -> str:
    """Say why no usable event stands there."""
    if not is_json(event):
        return "is not JSON"
    if event[:1] != b"{":
        return f"is {kind(event)}, not an object"
    name = bytes(_decode(_NAMED, event).event_name)
    if not name:
        return "has no eventName"
    return "has an empty eventName" if name == b'""' else "has an eventName that is not a string"


def count_suspects(events: Sequence[Timed | Probe]) -> Mapping[str, int]:
    """Count the events that Statsig is documented to drop in silence, by reason; an event may count for several.

    name_characters: a character in the name that is not allowed. name_length: a name over 64 characters, or a string
    value over 128. metadata_size: metadata over 4,096 bytes. The SDKs' own events are held to none of it.
    """
    names: set[str] = set()
    any_large = False
    for event in events:
        names.add(event.event_name)
        if len(event.value) > VALUE_CHARACTERS_MAX or len(event.metadata) > METADATA_BYTES_MAX:
            any_large = True
    odd_names = {name for name in names if _ODD_NAME.search(name)}
    if not (any_large or odd_names or any(len(name) > NAME_CHARACTERS_MAX for name in names)):
        return {}
    others = [event for event in events if not event.event_name.startswith(_OWN_EVENTS)]
    counts = {
        "name_characters": sum(event.event_name in odd_names for event in others),
        "name_length": sum(
            len(event.event_name) > NAME_CHARACTERS_MAX or _is_long_string(event.value) for event in others
        ),
        "metadata_size": sum(len(event.metadata) > METADATA_BYTES_MAX for event in others),
    }
    return {reason: count for reason, count in counts.items() if count}


def _is_long_string(value: msgspec.Raw) -> bool:
    """Tell it of a value as it is spelled; escapes take more room than the characters they stand for."""
    too_long = len(value) > VALUE_CHARACTERS_MAX and bytes(value).startswith(b'"')
    return too_long and len(_STRING.decode(value)) > VALUE_CHARACTERS_MAX


def stamp(event: bytes, seen: Probe, time_ms: int) -> bytes:
    """Give an event without a time one: in place of its null, or as its first member; every other byte stays."""
    time = b"%d" % time_ms
    if not len(seen.time):
        return b'{"time":' + time + b"," + event[1:]
    return scanner.splice(
        event,
        [
            scanner.Edit(member.value.start, member.value.end, time)
            for member in scanner.members(event, 0)
            if member.name == "time" and event[member.value.start : member.value.end] == b"null"
        ],
    )


def split_events(text: bytes) -> list[bytes]:
    """Take a stored text apart: the raw bytes of each of its events, without the space between them."""
    array = b"[" + text + b"]"
    try:
        return [bytes(event) for event in _RAWS.decode(array)]
    except (msgspec.DecodeError, RecursionError):
        return [array[value.start : value.end] for value in scanner.elements(array, 0)]


def cut(text: bytes, events: int, *, events_max: int, bytes_max: int) -> list[tuple[bytes, int]]:
    """Cut a text of `events` events into texts of at most `events_max` events and `bytes_max` bytes, in order.

    An event over `bytes_max` stands alone. A text that fits is given back as it is, unread.
    """
    if events <= events_max and len(text) <= bytes_max:
        return [(text, events)]
    return [(b",".join(pack), len(pack)) for pack in _packs(split_events(text), events_max, bytes_max)]


def _packs(events: Iterable[bytes], events_max: int, bytes_max: int) -> Iterable[list[bytes]]:
    pack: list[bytes] = []
    size = 0
    for event in events:
        if pack and (len(pack) == events_max or size + len(event) > bytes_max):
            yield pack
            pack, size = [], 0
        pack.append(event)
        size += len(event) + 1  # its comma
    if pack:
        yield pack
