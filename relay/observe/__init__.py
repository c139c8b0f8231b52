"""What the relay tells its operators: what happened, counted as it happens, and how things stand, asked for when read.

    listener, forwarder, spool ──one call per thing that happens──► Observer ──┐
                                                                               ├─► metrics.read() ──► /metrics
    app ──asked at scrape time──► Snapshot (queue, lanes, forwarder) ──────────┘
                                     └──► History (15 minutes, for the depth curve and the time until full)

A thing that happens is a method of the Observer; what stands is a field of the Snapshot; `metrics.FAMILIES` is the one
list that gives both their names. Nothing here knows the spool or the forwarder, so that either can be read in tests
with plain numbers.
"""

from relay.observe.fingerprint import fingerprint
from relay.observe.history import SAMPLE_SECONDS, History, Trend
from relay.observe.numbers import (
    AttemptNumbers,
    ForwardNumbers,
    LaneNumbers,
    LaneState,
    Phase,
    QueueNumbers,
    Snapshot,
)
from relay.observe.observer import Observer, Outcome

__all__ = [
    "SAMPLE_SECONDS",
    "AttemptNumbers",
    "ForwardNumbers",
    "History",
    "LaneNumbers",
    "LaneState",
    "Observer",
    "Outcome",
    "Phase",
    "QueueNumbers",
    "Snapshot",
    "Trend",
    "fingerprint",
]
