"""The operators' hand on a queue: what changes it while a relay runs, and when none does.

    relay queue pause, dlq purge … ──► client ──one line of JSON──► server ──► Verbs ──► spool, forwarder
                                          │            (a Unix socket in the queue's folder, 0600)
                                          └──no relay runs──► takes the folder's lock ──► Verbs ──► spool

The same Verbs serve both, so that a queue is changed in one way only. Whatever only looks does not come here: it reads
the file itself (`relay.spool.reader`).
"""

from relay.control.client import ask
from relay.control.offline import Bounds, carry_out
from relay.control.protocol import Done, LaneList, Lanes, Pause, Purge, Refused, Rekey, Replay, Resume
from relay.control.server import ControlServer
from relay.control.verbs import Verbs

__all__ = [
    "Bounds",
    "ControlServer",
    "Done",
    "LaneList",
    "Lanes",
    "Pause",
    "Purge",
    "Refused",
    "Rekey",
    "Replay",
    "Resume",
    "Verbs",
    "ask",
    "carry_out",
]
