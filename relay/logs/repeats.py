"""Keeps what repeats out of the log: the first of its kind at once, then one summary a minute."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

QUIET_SECONDS: Final = 60.0
KINDS_MAX: Final = 1024
"""Kinds remembered at a time; beyond it the oldest is summed up early and forgotten."""

_everyone: WeakSet[OnceAMinute] = WeakSet()


class Emit(Protocol):
    """A log method such as `log.warning`."""

    def __call__(self, event: str, /, **fields: Any) -> object:
        """Write one line."""
        ...


class _Kind:
    """One kind of thing that happened lately."""

    def __init__(self, emit: Emit, event: str, quiet_until: float) -> None:
        self.emit = emit
        self.event = event
        self.quiet_until = quiet_until
        self.times = 0
        """How often since the last line."""
        self.fields: dict[str, Any] = {}
        """Of the last time."""


class OnceAMinute:
    """Lets the first of its kind through, then one line a minute; safe from any thread.

    A line that stands for several carries `times`; over all lines of a kind, `times` (1 where it is absent) adds up to
    how often the thing happened, once the log's writer has summed up what was still held back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._clock = clock
        self._quiet_seconds = quiet_seconds
        self._kinds: dict[Hashable, _Kind] = {}
        self._lock = threading.Lock()
        _everyone.add(self)

    def say(self, emit: Emit, event: str, /, *, per: Hashable = None, **fields: Any) -> None:
        """Log `event` through `emit`, unless it was within the last minute; `per` tells kinds of one event apart."""
        lines = []
        with self._lock:
            kind = self._kinds.get((event, per))
            now = self._clock()
            if kind is not None and now < kind.quiet_until:
                kind.times += 1
                fields.pop("exc_info", None)  # it would keep a traceback's frames alive
                kind.fields = fields
                return
            if kind is None and len(self._kinds) >= KINDS_MAX:
                lines += _sum_up(self._kinds.pop(next(iter(self._kinds))))
            times = kind.times + 1 if kind else 1
            self._kinds[event, per] = _Kind(emit, event, now + self._quiet_seconds)
        lines.append((emit, event, fields if times == 1 else {**fields, "times": times}))
        _write(lines)

    def summarise(self, *, early: bool = False) -> None:
        """Log a line for each kind that was held back for its minute, or for less where `early`; forget the rest."""
        lines: list[tuple[Emit, str, dict[str, Any]]] = []
        with self._lock:
            now = self._clock()
            for name, kind in list(self._kinds.items()):
                if now < kind.quiet_until and not early:
                    continue
                if kind.times:
                    lines += _sum_up(kind)
                    self._kinds[name] = _Kind(kind.emit, kind.event, now + self._quiet_seconds)
                else:
                    del self._kinds[name]
        _write(lines)


def summarise_all(*, early: bool = False) -> None:
    """Do so for every OnceAMinute there is."""
    for repeats in list(_everyone):
        repeats.summarise(early=early)


def _sum_up(kind: _Kind) -> list[tuple[Emit, str, dict[str, Any]]]:
    return [(kind.emit, kind.event, {**kind.fields, "times": kind.times})] if kind.times else []


def _write(lines: list[tuple[Emit, str, dict[str, Any]]]) -> None:
    for emit, event, fields in lines:  # outside the lock, for a log call may come back here
        emit(event, **fields)
