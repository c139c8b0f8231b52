"""What the forwarder tells the log: states that change, and failures without a flood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from relay.forwarder.batching import Batch
    from relay.forwarder.delivery import Outcome

SUMMARY_SECONDS: Final = 60.0


class Journal:
    """Lines for people; keys only by fingerprint, nothing that upstream or an app wrote."""

    def __init__(self, *, host: str) -> None:
        self._log = structlog.get_logger().bind(upstream=host)
        self._silent_until = float("-inf")
        self._unsaid = 0
        self._disk_silent_until = float("-inf")

    def attempt_failed(self, now: float, lane: str, batch: Batch, outcome: Outcome) -> None:
        """Log the first failure, then one summary a minute."""
        self._unsaid += 1
        if now < self._silent_until:
            return
        self._silent_until = now + SUMMARY_SECONDS
        self._log.warning(
            "batch_not_delivered",
            lane=lane,
            events=batch.events,
            attempt=batch.attempts,
            outcome=outcome.label,
            cause=outcome.summary,
            failures_since_last_line=self._unsaid,
        )
        self._unsaid = 0

    def gate_closed(self, reason: str, seconds: float) -> None:
        """Log that the host gets no more requests but probes."""
        self._log.warning("gate_closed", cause=reason, next_try_in_s=round(seconds, 1))

    def gate_opened(self) -> None:
        """Log that it does again."""
        self._silent_until = float("-inf")
        self._log.info("gate_opened")

    def lane_parked(self, lane: str, reason: str) -> None:
        """Log that a key does not work."""
        self._log.warning("lane_parked", lane=lane, cause=reason)

    def lane_resumed(self, lane: str) -> None:
        """Log that a lane delivers again."""
        self._log.info("lane_resumed", lane=lane)

    def lane_backs_off(self, lane: str, reason: str, seconds: float) -> None:
        """Log that a lane was told to wait."""
        self._log.warning("lane_backing_off", lane=lane, cause=reason, next_try_in_s=round(seconds, 1))

    def buried(self, lane: str, events: int, reason: str, cause: str) -> None:
        """Log new dead letters."""
        self._log.warning("events_dead_lettered", lane=lane, events=events, reason=reason, cause=cause)

    def isolating(self, lane: str, batch: Batch, cause: str) -> None:
        """Log that one batch alone keeps failing and is taken apart."""
        self._log.warning("batch_isolated", lane=lane, events=batch.events, attempt=batch.attempts, cause=cause)

    def size_learned(self, size: int) -> None:
        """Log that upstream found a batch too big."""
        self._log.warning("batch_too_large", refused_bytes=size)

    def spool_failed(self, now: float, lane: str, error: Exception) -> None:
        """Log, at most once a minute, that the disk would not do what a batch needs; it is tried again later."""
        if now < self._disk_silent_until:
            return
        self._disk_silent_until = now + SUMMARY_SECONDS
        self._log.error("spool_failed", lane=lane, cause=str(error))

    def clock_stepped(self) -> None:
        """Log that ages cannot be believed for a while."""
        self._log.warning("clock_stepped", effect="nothing expires for queue.age_max")
