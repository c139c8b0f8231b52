"""What requests in hand may hold of the memory, counted before it is taken."""

from __future__ import annotations

from typing import Self

from relay.errors import MemoryFull


class Memory:
    """A budget in bytes that all requests share."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0

    def reserve(self) -> Reservation:
        """Begin a request's account, empty."""
        return Reservation(self)


class Reservation:
    """One request's share; a context manager that gives all of it back."""

    __slots__ = ("_held", "_memory")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held_bytes -= self._held
        self._held = 0

    def set(self, size: int) -> None:
        """Hold exactly `size` bytes from now on; raises MemoryFull where others leave no room for that.

        A request that is alone may hold more than the budget: each of its parts is capped by limits of their own, and
        an honest request must not be refused for ever.
        """
        memory, more = self._memory, size - self._held
        others = memory.held_bytes - self._held
        if more > 0 and others > 0 and memory.held_bytes + more > memory.bytes_max:
            raise MemoryFull(
                f"requests in hand hold {memory.held_bytes} of {memory.bytes_max} bytes (listen.memory_bytes_max); "
                "send it again in a moment"
            )
        memory.held_bytes += more
        self._held = size
