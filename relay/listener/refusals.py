"""What only the front door has reason to refuse: requests that came at the wrong moment, each answered 503."""

from __future__ import annotations

from relay.errors import NotNow


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
