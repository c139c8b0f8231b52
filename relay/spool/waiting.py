"""Requests on their way to the disk, and the bound on how long each may wait for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import AnswerDue, NotNow

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from relay.spool.writer import Append


class Waiting:
    """Keeps them in order of arrival, and so of their deadlines: one timer serves all, for all wait equally long."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        withdraw: Callable[[Append], bool],
        left: Callable[[Append], None],
    ) -> None:
        """`withdraw` takes one back from the writer, False where it is too late; `left` hears of each that is over."""
        self._loop = loop
        self._withdraw = withdraw
        self._left = left
        self._appends: dict[Append, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, append: Append) -> None:
        """Wait for one; it is answered by its deadline at the latest."""
        self._appends[append] = None
        if self._timer is None:
            self._timer = self._loop.call_at(append.due, self._sweep)

    def answer(self, append: Append, refusal: NotNow | None) -> None:
        """Let one go: tell who waits for it, unless the deadline has told already."""
        if append in self._appends:
            del self._appends[append]
            self._left(append)
        _tell(append, refusal)

    def answer_all(self, refusal: NotNow) -> None:
        """Let everyone go."""
        for append in list(self._appends):
            self.answer(append, refusal)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        for append in list(self._appends):
            if append.due > now:
                self._timer = self._loop.call_at(append.due, self._sweep)
                return
            if append.done is None:
                continue
            if self._withdraw(append):
                self.answer(append, AnswerDue("the disk is too slow just now; nothing was stored", ambiguous=False))
            else:
                _tell(append, AnswerDue("the disk is too slow just now; the events may be stored", ambiguous=True))


def _tell(append: Append, refusal: NotNow | None) -> None:
    if append.done is not None:
        done, append.done = append.done, None
        done(refusal)
