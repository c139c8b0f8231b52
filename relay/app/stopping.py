"""When to stop, and how patiently: the first signal drains, the second one does not wait."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


class Stop:
    """The wish to stop, from a signal or from a room that cannot go on."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self.failure: Exception | None = None
        """Set where a room could not go on; the process then ends with exit code 1."""

    def listen_for_signals(self) -> None:
        """Take over SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.ask, signal.Signals(number).name)

    def ask(self, why: str) -> None:
        """Stop; asked twice, stop without waiting."""
        if self.asked.is_set():
            _log.warning("stopping_at_once", why=why)
            self.hurried.set()
        else:
            _log.info("stopping", why=why)
            self.asked.set()

    def fail(self, failure: Exception) -> None:
        """Stop because a room cannot go on."""
        if self.failure is None:
            self.failure = failure
            _log.critical("cannot_go_on", error=str(failure))
        self.asked.set()

    def last_word(self, undelivered_events: int) -> str:
        """Tell the supervisor what is left, and why it came to an end where nobody asked for one."""
        why = "" if self.failure is None else f"could not go on: {self.failure}; "
        return f"{why}{undelivered_events} events are queued on disk; the next start delivers them\n"

    async def unless_hurried(self, waiting: Awaitable[object]) -> bool:
        """Wait for something, but not past the second signal; False where that cut it short."""
        work = asyncio.ensure_future(waiting)
        hurry = asyncio.ensure_future(self.hurried.wait())
        try:
            await asyncio.wait({work, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return False
            work.result()
            return True
        finally:
            for one in (work, hurry):
                one.cancel()
            await asyncio.gather(work, hurry, return_exceptions=True)
