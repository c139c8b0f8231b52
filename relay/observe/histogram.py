"""A histogram cheap enough for every request: a bisection, two additions, no lock."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Histogram:
    """Counts observations by upper bound, the way Prometheus reads them; all calls from one thread."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Count `value` as `weight` observations; a bound belongs to its own bucket (`le`)."""
        self._counts[bisect_left(self._bounds, value)] += weight
        self._sum += value * weight

    def cumulative(self) -> list[tuple[float, int]]:
        """Every bound with the observations at or under it; the last is +Inf and holds them all."""
        running, rows = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows

    @property
    def sum(self) -> float:
        """All observed values added up."""
        return self._sum
