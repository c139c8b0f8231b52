"""The host's gate: how many requests may be under way at once, and when to knock again; pure.

    open: 1 … in_flight_max ──failures──► closed: 0 ──wait──► half open: one probe ──proof──► open: 1
       ▲ +1 for each `limit` successes        ▲                        │
       └──────────────────────────────────────└──────── failure ───────┘

Additive increase, multiplicative decrease. Any answer that shows the host at work (a 429 or a 401 as well) reopens it.
A failure while others succeed never closes it: then the batch is the likelier culprit, not the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.forwarder.delivery import backoff

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """A state machine with the time given from outside: monotonic seconds."""

    def __init__(
        self,
        *,
        in_flight_max: int,
        retry_seconds_min: float,
        retry_seconds_max: float,
        random: Callable[[], float],
    ) -> None:
        self._in_flight_max = in_flight_max
        self._retry_seconds_min = retry_seconds_min
        self._retry_seconds_max = retry_seconds_max
        self._random = random
        self.limit = in_flight_max
        """Requests it lets through now; 0 is closed. Nothing is known against a host at first, so it starts open."""
        self.in_flight = 0
        self.successes = 0
        """Since the process began; a batch compares two readings to learn whether others got through."""
        self.failures = 0
        """The host's, since the process began."""
        self.opens_at = 0.0
        """When a closed gate lets its next probe through."""
        self.backoff_seconds = 0.0
        """The wait that is under way; 0 while open."""
        self.cautious = False
        """Closed by answers that make no sense: probe with a single chunk, for it may be billed twice."""
        self.reason = ""
        """Why it is closed."""
        self._closures = 0
        self._proofs = 0  # signs of life since the last failure
        self._progress = 0  # successes towards the next increase
        self._culprits: set[int] = set()  # batches that failed since the last sign of life, two at most
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Requests flow; else one probe at a time."""
        return self.limit > 0

    @property
    def has_spare(self) -> bool:
        """More than one request may start now."""
        return self.limit - self.in_flight > 1

    def next_at(self, now: float) -> float | None:
        """When the next request may start: `now`, later, or None while that waits for one under way to end."""
        if self.is_open:
            return now if self.in_flight < self.limit else None
        if self._probing:
            return None
        return now if self._has_sole_culprit() else max(now, self.opens_at)

    def started(self) -> None:
        """Count a request in; the gate must have let it through."""
        self.in_flight += 1
        self._probing = not self.is_open

    def ended(self) -> None:
        """Count a request out; its outcome is told next, unless it is lost with the process."""
        self.in_flight -= 1

    def withdrawn(self) -> None:
        """The request that was let through taught nothing: it never went out, or its batch alone is at fault."""
        self._probing = False

    def alive(self) -> None:
        """The host answered and it was no fault of its own: proof that it works, no reason to send more."""
        self._proofs += 1
        self._culprits.clear()
        if self._probing:
            self._open()

    def succeeded(self) -> None:
        """A batch was delivered."""
        self.successes += 1
        was_open = self.is_open
        self.alive()
        if not was_open:
            return
        self._progress += 1
        if self._progress >= self.limit:
            self._progress = 0
            self.limit = min(self.limit + 1, self._in_flight_max)

    def failed(self, now: float, *, culprit: int, reason: str, retry_after_seconds: float = 0.0) -> None:
        """The host failed on the batch `culprit`; an explicit wait closes the gate at once."""
        self.failures += 1
        others_got_through = self._proofs > 0
        self._proofs = self._progress = 0
        if len(self._culprits) < 2:  # noqa: PLR2004  all that matters is whether there is more than one
            self._culprits.add(culprit)
        if self._probing:
            self._close(now, reason, retry_after_seconds)
        elif self.is_open:
            self.limit = max(self.limit // 2, 1 if others_got_through else 0)
            if self.limit == 0 or retry_after_seconds:
                self._close(now, reason, retry_after_seconds)
        elif retry_after_seconds:
            self.opens_at = max(self.opens_at, now + retry_after_seconds)

    def shut(self, now: float, *, seconds: float, reason: str) -> None:
        """Close it for answers that time alone does not heal; one cautious probe each `seconds`."""
        self.failures += 1
        self.limit, self.cautious, self.reason = 0, True, reason
        self._probing = False
        self._proofs = 0
        self._culprits.clear()
        self.backoff_seconds = seconds
        self.opens_at = now + seconds

    def _has_sole_culprit(self) -> bool:
        """Only one batch speaks against the host, so that any other may try at once and settle which is at fault."""
        return len(self._culprits) == 1 and not self.cautious

    def _open(self) -> None:
        self.limit, self.cautious, self.reason = 1, False, ""
        self._probing = False
        self._closures = self._progress = 0
        self.backoff_seconds = 0.0

    def _close(self, now: float, reason: str, retry_after_seconds: float) -> None:
        self._closures += 1
        own = backoff(
            self._closures,
            seconds_min=self._retry_seconds_min,
            seconds_max=self._retry_seconds_max,
            random=self._random,
        )
        self.limit, self.reason = 0, reason
        self._probing = False
        self.backoff_seconds = max(own, retry_after_seconds)
        self.opens_at = now + self.backoff_seconds
        if retry_after_seconds:
            self._culprits.clear()  # the host spoke for itself
