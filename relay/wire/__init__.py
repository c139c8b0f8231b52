"""The log_event contract: bytes to typed requests; pure.

    headers, query ──read_head──► Head: key, client's clock, session, headers that travel on
    body ──inflate──► JSON ──parse_body──► Parsed
                                ├─ text       the usable events' raw bytes, joined by commas ──cut──► chunks
                                ├─ envelope   the raw members beside `events`
                                ├─ rejected   events that cannot be taken, with their bytes and why
                                └─ suspects   events that upstream is known to drop in silence, counted

What an app sent goes on byte for byte. The bytes change in two places only: privateAttributes of users are cut out, and
an event without a time is given one. Whatever cannot be taken raises a relay.errors.Refusal; nothing else is raised
for any bytes at all. No file here reads a clock, a socket or a disk.
"""

from relay.wire.body import Limits, Parsed, Rejected, parse_body, parse_usual
from relay.wire.events import cut, split_events
from relay.wire.head import Head, read_head
from relay.wire.inflate import inflate, needs_inflating
from relay.wire.scanner import NESTING_MAX

__all__ = [
    "NESTING_MAX",
    "Head",
    "Limits",
    "Parsed",
    "Rejected",
    "cut",
    "inflate",
    "needs_inflating",
    "parse_body",
    "parse_usual",
    "read_head",
    "split_events",
]
