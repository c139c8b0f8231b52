"""Whether there is room for more: in the queue, on the disk, and in a lane's share of it; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from relay.errors import QueueFull
from relay.spool.folder import Space

if TYPE_CHECKING:
    from relay.spool.index import Lane

RESERVE_SHARE: Final = 64
"""One part in so many of the capacity is kept for marks and parts: what is full must still be able to drain."""
USUAL_BYTES: Final = 1024 * 1024
"""A usual request, of a thousand events: without room for that the spool does not call itself ready."""
AGAIN_FACTOR: Final = 2
"""Nor does it again until so many of them fit, or it would swing while the queue hovers at its bound."""


class Room:
    """What is in use, and what is on its way to the disk."""

    def __init__(self, *, capacity_bytes: int, disk_free_bytes_min: int, lane_bytes_share_max: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        """Live bytes of the file, by its last commit."""
        self.pending_bytes = 0
        """Admitted since."""
        self.space = Space(0, 0)
        self.disk_free_bytes_min = disk_free_bytes_min
        self._share_bytes = int(capacity_bytes * lane_bytes_share_max)
        self._usual_bytes = min(USUAL_BYTES, capacity_bytes // RESERVE_SHARE)
        self._short = False

    def check_usual(self) -> None:
        """Raise QueueFull where a usual request finds no room, and from then on until there is ample room."""
        was_short, self._short = self._short, True
        self.check(self._usual_bytes * (AGAIN_FACTOR if was_short else 1))
        self._short = False

    def check(self, size: int) -> None:
        """Raise QueueFull where so many bytes more would not fit."""
        capacity = self.capacity_bytes
        if self.used_bytes + self.pending_bytes + size > capacity - capacity // RESERVE_SHARE:
            raise QueueFull(
                f"the queue is full: {self.used_bytes} of {capacity} bytes hold events that upstream has not taken yet"
            )
        if self.space.free_bytes - self.pending_bytes - size < self.disk_free_bytes_min:
            raise QueueFull(
                f"the disk has {self.space.free_bytes} bytes free, of which queue.disk_free_bytes_min keeps "
                f"{self.disk_free_bytes_min}"
            )

    def is_over_share(self, lane: Lane, size: int) -> bool:
        """Whether a lane with so many bytes more would hold more than its share."""
        return lane.bytes + size > self._share_bytes

    def refuse_share(self, lane: Lane) -> QueueFull:
        """Say it of a lane that is stuck, so that it does not take the room of those that move."""
        return QueueFull(
            f"upstream does not take this key's events; they hold {lane.bytes} bytes already, and its share of the "
            f"queue is {self._share_bytes} while other keys need room (queue.lane_bytes_share_max)"
        )
