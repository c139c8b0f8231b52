"""Everything the relay refuses or fails with, as one tree.

    RelayError
    ├── ConfigError            the operator's settings are wrong (exit 2)
    ├── Refusal                an app's request is answered with an error; nothing of it is kept
    │   ├── InvalidRequest         400  can never be accepted
    │   ├── Unauthorized           401  no key, or one outside the operator's list
    │   ├── OriginForbidden        403  a web page that the operator has not allowed
    │   ├── PathUnknown            404
    │   ├── MethodNotAllowed       405
    │   ├── BodyTooSlow            408  the body did not arrive in time
    │   ├── TooLarge               413  past an absolute cap of the operator
    │   ├── EncodingUnsupported    415
    │   └── NotNow                 503  no room or no disk just now: the same request may succeed later
    │       ├── QueueFull
    │       ├── MemoryFull
    │       ├── DiskFailing
    │       ├── AnswerDue              the commit did not finish within the answer bound
    │       ├── Starting
    │       ├── Stopping
    │       ├── Busy                   too many big bodies at a time
    │       ├── ConnectionsFull
    │       ├── KeysUnknown            the operator's list holds no key yet
    │       └── OwnFault               a bug of ours
    └── SpoolError             the queue folder cannot be used
        ├── SpoolLocked            another process holds it (exit 1)
        ├── SpoolTooNew            a later release wrote it (exit 2, nothing touched)
        ├── SpoolForeign           another program's database lies there (exit 2, nothing touched)
        ├── SpoolUnfit             a file system that cannot keep the promise (exit 2)
        ├── StoreFull              a commit found no room; rolled back
        ├── StoreFailed            a commit failed; rolled back, the store is to be reopened
        │   ├── StoreBusy              another process holds the file's lock: the same may succeed later
        │   └── StoreDamaged           the file itself is wrong: what can be read is to be saved
        └── ChunkCorrupt           a stored chunk fails its checksum

Only a Refusal knows about HTTP: its class holds the status, the `code` that clients read and the `reason` that the
counter `ingest_events_rejected_total` is labelled with. One place in the listener turns it into an answer.
"""

from __future__ import annotations

from typing import ClassVar


class RelayError(Exception):
    """Whatever the relay raises on purpose; its text says what was wrong, where, and what to do."""


class ConfigError(RelayError):
    """The settings are wrong; `problems` holds one line for each, ready to print."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Refusal(RelayError):
    """A request that is answered with an error and leaves no trace; `str()` of it is the message the client reads."""

    status: ClassVar[int]
    code: ClassVar[str]
    reason: ClassVar[str] = "invalid"
    retry_after_seconds: ClassVar[int | None] = None


class InvalidRequest(Refusal):
    """What can never be accepted: not JSON, no object, no usable event."""

    status = 400
    code = "invalid_request"


class Unauthorized(Refusal):
    """No key at all, or one outside the operator's list."""

    status = 401
    code = "unauthorized"
    reason = "unauthorized"


class OriginForbidden(Refusal):
    """A browser's Origin that `listen.cors_origins` does not name."""

    status = 403
    code = "origin_forbidden"
    reason = "unauthorized"


class PathUnknown(Refusal):
    """A path that `listen.paths` does not name."""

    status = 404
    code = "path_unknown"


class MethodNotAllowed(Refusal):
    """Anything but POST and OPTIONS on an ingest path."""

    status = 405
    code = "method_not_allowed"


class BodyTooSlow(Refusal):
    """The body took longer than `listen.body_seconds_max`; SDKs send it again."""

    status = 408
    code = "body_too_slow"


class TooLarge(Refusal):
    """Past one of the operator's absolute caps; the message names the cap."""

    status = 413
    code = "too_large"
    reason = "too_large"


class EncodingUnsupported(Refusal):
    """A body that is compressed in a way we cannot read; the message lists what we can."""

    status = 415
    code = "encoding_unsupported"


class NotNow(Refusal):
    """No room, no disk or no time just now; the client shall send it again."""

    status = 503
    code = "not_now"
    retry_after_seconds = 5


class QueueFull(NotNow):
    """The queue or the lane has reached its high-water mark, or the disk its floor."""

    code = "queue_full"
    reason = "queue_full"


class MemoryFull(NotNow):
    """Requests in hand already fill `listen.memory_bytes_max`."""

    code = "memory_full"
    reason = "queue_full"
    retry_after_seconds = 1


class DiskFailing(NotNow):
    """The commit of this request failed; none of it was acknowledged."""

    code = "disk_error"
    reason = "disk_error"


class AnswerDue(NotNow):
    """The commit did not end within `listen.answer_seconds_max`.

    `ambiguous` tells whether it was under way already, so that the events may be stored all the same.
    """

    code = "commit_too_slow"
    reason = "disk_error"

    def __init__(self, message: str, *, ambiguous: bool) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class Starting(NotNow):
    """The listener is open, the spool is not yet."""

    code = "starting"
    reason = "disk_error"
    retry_after_seconds = 1


class ConnectionsFull(NotNow):
    """`listen.connections_max` are open, and none of them is idle."""

    code = "connections_full"
    reason = "queue_full"
    retry_after_seconds = 1


class Busy(NotNow):
    """The threads that read big bodies had too much to do within `listen.answer_seconds_max`."""

    code = "busy"
    reason = "queue_full"
    retry_after_seconds = 1


class Stopping(NotNow):
    """The relay stops, and the body had not arrived yet."""

    code = "stopping"
    reason = "disk_error"
    retry_after_seconds = 1


class KeysUnknown(NotNow):
    """`listen.api_keys_allowed_file` holds no key yet: 401 would make SDKs drop what a second later is welcome."""

    code = "keys_unknown"
    reason = "unauthorized"


class OwnFault(NotNow):
    """A bug of ours must not cost a client its events."""

    code = "internal_error"
    reason = "disk_error"


class SpoolError(RelayError):
    """The queue folder cannot be used."""


class SpoolLocked(SpoolError):
    """Another process holds the folder; the message says which."""


class SpoolTooNew(SpoolError):
    """The file's format is newer than this release reads; nothing was touched."""


class SpoolForeign(SpoolError):
    """A database of another program has the spool's name; nothing was touched."""


class SpoolUnfit(SpoolError):
    """The file system cannot keep the promise (a network file system)."""


class StoreFull(SpoolError):
    """A commit found no room and was rolled back; delivering what is queued makes room."""


class StoreFailed(SpoolError):
    """A commit failed and was rolled back; its rows may still appear after the store is reopened."""


class StoreBusy(StoreFailed):
    """Another process holds a lock on the file; nothing is wrong with the disk, and nothing was written."""


class StoreDamaged(StoreFailed):
    """SQLite finds the file itself wrong: opening it anew does not help, what can be read is to be saved."""


class ChunkCorrupt(SpoolError):
    """A stored chunk fails its checksum or cannot be read."""
