"""Which events are too old to send, when the wall clock can be believed; pure.

An event's age is the wall clock now less the wall clock then. Where the wall clock has made a step that matters (a
machine that booted in 1970 or in another zone, a guest that was suspended), ages say nothing until every event from
before the step has waited `age_seconds_max` by the monotonic clock: so long nothing expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.spool import Ref

STEP_SECONDS_MAX: Final = 300.0
"""What a clock that is steered without steps never comes to between two looks."""
STEP_SHARE_MAX: Final = 0.1
"""Of the age: a smaller step than that expires nothing much too early."""


class Expiry:
    """Tells old chunks from the rest; `age_seconds_max` 0 is never."""

    def __init__(self, *, age_seconds_max: float) -> None:
        self._age_seconds_max = age_seconds_max
        self._step_seconds_max = min(STEP_SECONDS_MAX, age_seconds_max * STEP_SHARE_MAX or STEP_SECONDS_MAX)
        self._offset: float | None = None
        self._believe_at = float("-inf")

    def look(self, *, monotonic: float, wall: float) -> bool:
        """Compare the clocks; True where a step was found just now. Call it before asking `is_old`, and often."""
        offset = wall - monotonic
        stepped = self._offset is not None and abs(offset - self._offset) > self._step_seconds_max
        self._offset = offset
        if stepped:
            self._believe_at = monotonic + self._age_seconds_max
        return stepped

    def cut_off_ms(self, *, monotonic: float, wall: float) -> int | None:
        """Chunks accepted before this are too old; None while none is."""
        if not self._age_seconds_max or monotonic < self._believe_at:
            return None
        return int((wall - self._age_seconds_max) * 1000)

    def next_at(self, oldest_accepted_at_ms: Iterable[int], *, monotonic: float, wall: float) -> float | None:
        """When, by the monotonic clock, the first of these gets too old; None for never."""
        oldest = min(oldest_accepted_at_ms, default=None)
        if oldest is None or not self._age_seconds_max:
            return None
        return max(self._believe_at, monotonic + oldest / 1000 + self._age_seconds_max - wall)


def split_old(refs: Iterable[Ref], cut_off_ms: int | None) -> tuple[list[Ref], list[Ref]]:
    """Part chunks into those too old and the others."""
    old: list[Ref] = []
    others: list[Ref] = []
    for ref in refs:
        (old if cut_off_ms is not None and ref.accepted_at_ms < cut_off_ms else others).append(ref)
    return old, others
