"""A forwarder between a spool in memory and an upstream in memory, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fakes.poster import FakePoster
from fakes.spool import FakeSpool
from fakes.time import Wall, seeded

from relay.forwarder.loop import Forwarder
from relay.spool import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

FAR = 1e12


class Counting:
    """An observer that only counts."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.delivered = 0
        self.delays: list[tuple[float, int]] = []

    def attempt_ended(self, outcome: str, events: int, bytes: int, seconds: float) -> None:  # noqa: A002  as in observe
        assert bytes >= 0
        assert seconds >= 0
        self.attempts[outcome] += 1
        self.events[outcome] += events

    def batch_delivered(self, events: int, delays: Sequence[tuple[float, int]]) -> None:
        self.delivered += events
        assert sum(weight for _, weight in delays) == events
        self.delays += delays


def event(name: str, padding: int = 0) -> bytes:
    return b'{"eventName":"%s","pad":"%s"}' % (name.encode(), b"x" * padding)


def record(names: Sequence[str], *, at_ms: int, key: str = "secret-a", padding: int = 0, **more: Any) -> Record:
    text = b",".join(event(name, padding) for name in names)
    fields = {"envelope": b"", "headers": b"", "skew_ms": None} | more
    return Record(key=key, text=text, events=len(names), accepted_at_ms=at_ms, **fields)


@dataclass
class Bench:
    spool: FakeSpool
    poster: FakePoster
    wall: Wall
    observer: Counting
    forwarder: Forwarder
    sent: list[str] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    """Names of events that a test has made corrupt."""

    async def put(self, *names: str, **how: Any) -> None:
        """Append one chunk of these events."""
        self.sent += names
        await self.spool.append([record(names, at_ms=self.wall.ms(), **how)], deadline=FAR)

    async def until(self, true: Callable[[], bool], seconds_max: float = 86400.0) -> None:
        """Let time pass until `true`, at most so long."""
        end = asyncio.get_running_loop().time() + seconds_max
        while not true():
            assert asyncio.get_running_loop().time() < end, "it never came true"
            await asyncio.sleep(0.01 if seconds_max < 3600 else 0.25)

    async def until_empty(self, seconds_max: float = 86400.0) -> None:
        await self.until(lambda: not self.spool.queued(), seconds_max)

    def check_conserved(self) -> None:
        """Every event was taken, is queued, or is a dead letter; and the books agree."""
        kept = b",".join(self.spool.texts([*self.spool.queued(), *self.spool.dead()]))
        known = {*self.poster.taken, *self.unreadable}
        missing = [name for name in self.sent if name not in known and b'"%s"' % name.encode() not in kept]
        assert not missing
        self.spool.commit()
        assert self.spool.drift() == 0


@asynccontextmanager
async def bench(
    poster: FakePoster | None = None, *, spool: FakeSpool | None = None, seed: int = 1, **options: Any
) -> AsyncIterator[Bench]:
    """Run a forwarder; at the end it is cancelled, and nothing may be left leased."""
    loop = asyncio.get_running_loop()
    made = Bench(spool or FakeSpool(), poster or FakePoster(), options.pop("wall", None) or Wall(), Counting(), None)  # type: ignore[arg-type]
    options = {"default_key": lambda: "default-key"} | options
    made.forwarder = Forwarder(
        spool=made.spool,
        upstream=made.poster,
        observer=made.observer,
        host="upstream.test",
        monotonic=loop.time,
        wall=made.wall,
        random=seeded(seed).random,
        **options,
    )
    task = asyncio.create_task(made.forwarder.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        if task.done():
            task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        made.spool.commit()
        assert not made.spool.leased(), "the forwarder left chunks leased"
        made.check_conserved()
