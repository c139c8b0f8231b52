"""The front door: admits a request, decodes it, appends it to the spool, answers.

    connection ─► Door.handle ─► admit ─► read body ─► decode (wire) ─► Spool.append ─► 202
                     │             │          │            │                │
                     └─────────────┴──── any Refusal ──────┴────────────────┴──► one answer (answers.py)

Promises: 202 leaves only after the append returned; every answer leaves within `answer_seconds_max` of the last body
byte; a refused request leaves no trace; no client can cause any other status than those of errors.Refusal.
"""

from relay.listener.door import Door
from relay.listener.server import Listener

__all__ = ["Door", "Listener"]
