"""The operator's caps on one request, as the configuration names them."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and seconds; `chunk_…` bound what is stored as one."""

    request_bytes_max: int
    inflated_bytes_max: int
    event_bytes_max: int
    events_per_request_max: int
    envelope_bytes_max: int
    memory_bytes_max: int
    body_seconds_max: float
    answer_seconds_max: float
    chunk_events_max: int
    chunk_bytes_max: int
