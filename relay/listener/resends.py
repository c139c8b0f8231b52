"""Recognises what a client sends again because our answer was lost or late: exact repeats, within a bounded memory.

An SDK that times out sends the same events once more, and upstream would count and bill them twice. An event is a
repeat when its raw bytes were stored by an earlier request of the same key and SDK session. Three things keep honest
events safe: requests without a session are never compared, neither are events without a time of their own, and an
event is never compared with others of its own request: two equal events in one request are two events.

Hashes are remembered in generations, so that forgetting costs nothing: the oldest generation is dropped whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WINDOW_SECONDS: Final = 15 * 60
"""SDKs give up after a few minutes of back-off; the longest seen is 111 s, ten times over."""
GENERATIONS: Final = 4
HASHES_MAX: Final = 200_000
"""Remembered at most, some 15 MB; past that the oldest go early. 64 bits each: a chance match among these is 1e-14."""


class Resends:
    """The memory. `clock` gives monotonic seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        window_seconds: float = WINDOW_SECONDS,
        hashes_max: int = HASHES_MAX,
    ) -> None:
        self._clock = clock
        self._span = window_seconds / (GENERATIONS - 1)
        self._generation_max = max(1, hashes_max // GENERATIONS)
        self._generations: list[set[int]] = [set() for _ in range(GENERATIONS)]
        self._began = clock()

    def hashes(self, key: str, session: str, events: Sequence[bytes]) -> list[int]:
        """Give each event's mark; two events have the same one only where key, session and bytes are the same."""
        scope = hash((key, session))
        return [hash((scope, event)) for event in events]

    def are_new(self, hashes: Sequence[int]) -> list[bool]:
        """Tell for each event whether no earlier request stored it."""
        self._turn()
        first, second, third, fourth = self._generations
        return [not (h in first or h in second or h in third or h in fourth) for h in hashes]

    def stored(self, hashes: Sequence[int]) -> None:
        """Remember events whose commit is on the disk."""
        self._turn()
        youngest = self._generations[0]
        youngest.update(hashes)
        if len(youngest) >= self._generation_max:
            self._drop_oldest()

    def _turn(self) -> None:
        """Drop the generations that have grown too old."""
        age = self._clock() - self._began
        if age >= self._span:
            for _ in range(min(GENERATIONS, int(age / self._span))):
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._generations.pop()
        self._generations.insert(0, set())
        self._began = self._clock()
