"""An event loop whose time passes only when everybody waits, and then at once."""

from __future__ import annotations

import asyncio
import random
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]  # the class depends on the system
    """Never sleeps: where the loop would, its clock jumps."""

    skipped_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                # Only a thread can help now; a short real wait lets it.
                return super().select(0.01)
            self.skipped_seconds += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Selector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return 1000.0 + self._skipping.skipped_seconds


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time; days pass in a moment."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Wall:
    """A wall clock that follows the running loop's, with whatever offset a test gives it."""

    def __init__(self, at: float = 1_795_000_000.0) -> None:
        self._loop = asyncio.get_running_loop()
        self.offset = at - self._loop.time()

    def __call__(self) -> float:
        return self._loop.time() + self.offset

    def ms(self) -> int:
        return round(self() * 1000)


def seeded(seed: int = 1) -> random.Random:
    return random.Random(seed)  # noqa: S311  jitter, not secrets
