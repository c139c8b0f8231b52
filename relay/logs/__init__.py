"""What the relay says of itself: one line a change of state or batch, as JSON, or readable on a terminal.

    structlog ────┐                                             setup      builds this, sets the level, ends it
                  ├─► level ─► stamp ─► scrub ─► render ─► writer ─► stderr
    logging ──────┘                     │                  its own thread behind a bounded queue
    (libraries)    once a minute        no secret passes

Rooms take `structlog.get_logger()` and from here only OnceAMinute, for what may happen a thousand times a
second.
"""

from relay.logs.repeats import OnceAMinute
from relay.logs.setup import close_logs, configure_logs, set_level

__all__ = ["OnceAMinute", "close_logs", "configure_logs", "set_level"]
