"""What requests in hand may hold of the memory, counted before it is taken.

    bytes_max  ├──────── big requests ────────┼─ an eighth ─┤
               ├──────── small requests ───────────────────►│

Big requests leave an eighth to the small ones, so that a burst of session recordings cannot shut the door on everybody.
A big request that is the only one may hold more than there is: each of its parts is capped by limits of their own, and
an honest request must not be refused for ever.
"""

from __future__ import annotations

from typing import Final, Self

from relay.errors import MemoryFull

SMALL_BYTES_MAX: Final = 256 * 1024
"""Of what a small request holds."""
_SMALL_SHARE: Final = 8


class Memory:
    """A budget in bytes that all requests share."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.small_bytes = 0
        self.big_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What all requests hold together."""
        return self.small_bytes + self.big_bytes

    def reserve(self) -> Reservation:
        """Begin a request's account, empty."""
        return Reservation(self)

    def change(self, before: int, after: int) -> None:
        """Let one request hold `after` bytes instead of `before`; raises MemoryFull where others leave no room."""
        small = self.small_bytes - (before if before <= SMALL_BYTES_MAX else 0)
        big = self.big_bytes - (before if before > SMALL_BYTES_MAX else 0)
        if after > before and not self._has_room(small, big, after):
            raise MemoryFull(
                f"requests in hand hold {self.held_bytes} of {self.bytes_max} bytes (listen.memory_bytes_max); "
                "send it again in a moment"
            )
        if after <= SMALL_BYTES_MAX:
            small += after
        else:
            big += after
        self.small_bytes, self.big_bytes = small, big

    def _has_room(self, small: int, big: int, size: int) -> bool:
        kept = self.bytes_max // _SMALL_SHARE
        if size <= SMALL_BYTES_MAX:
            return small + size <= kept or small + big + size <= self.bytes_max
        return not big or max(small, kept) + big + size <= self.bytes_max


class Reservation:
    """One request's share; `release` gives all of it back."""

    __slots__ = ("_held", "_memory")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def set(self, size: int) -> None:
        """Hold exactly `size` bytes from now on; raises MemoryFull where others leave no room for that."""
        self._memory.change(self._held, size)
        self._held = size

    def check(self, size: int) -> None:
        """Raise MemoryFull where `size` bytes would find no room now, and hold no more than before.

        What a head announces is not held: heads are cheap to send, and the bodies may never come.
        """
        held = self._held
        self.set(max(size, held))
        self.set(held)

    def hand_over(self) -> Reservation:
        """Give the whole share to a new account; this one is empty then and may be closed."""
        other = Reservation(self._memory)
        other._held, self._held = self._held, 0
        return other

    def release(self) -> None:
        """Give all of it back; may be called again."""
        if self._held:
            self.set(0)
