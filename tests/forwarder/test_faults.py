"""The forwarder against each fault on real sockets: nothing lost, nothing twice but what was in doubt and counted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from fakes.relay import FAR, Counting, record
from fakes.spool import FakeSpool
from fakes.time import seeded
from fakes.upstream import REFUSES, RESETS, TAKES, Fault, ScriptedUpstream

from relay.forwarder.loop import Forwarder
from relay.forwarder.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from relay.forwarder.upstream import Attempt, Poster

KEYS = ("secret-a", "secret-b", "secret-c")


class Run:
    def __init__(self) -> None:
        self.spool = FakeSpool()
        self.observer = Counting()
        self.sent: list[str] = []

    async def put(self, events: int, *, padding: int = 20) -> None:
        at = len(self.sent)
        names = [f"e{at + i}" for i in range(events)]
        self.sent += names
        now_ms = round(time.time() * 1000)
        await self.spool.append([record(names, at_ms=now_ms, key=KEYS[at % 3], padding=padding)], deadline=FAR)

    async def until_empty(self, seconds_max: float) -> None:
        async with asyncio.timeout(seconds_max):
            while self.spool.queued():
                await asyncio.sleep(0.01)

    def duplicates(self, fake: ScriptedUpstream) -> int:
        return sum(count - 1 for count in fake.taken.values())


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def client(url: str) -> Upstream:
    return Upstream(url=url, timeout_seconds=0.8, connect_seconds_max=0.3)


@asynccontextmanager
async def relaying(fake: ScriptedUpstream, poster: Poster | None = None) -> AsyncIterator[Run]:
    run = Run()
    loop = asyncio.get_running_loop()
    async with client(fake.url) as upstream:
        forwarder = Forwarder(
            spool=run.spool,
            upstream=poster or upstream,
            default_key=lambda: None,
            observer=run.observer,
            host="127.0.0.1",
            monotonic=loop.time,
            wall=time.time,
            random=seeded().random,
            batch_events_max=20,
            in_flight_max=4,
            retry_seconds_min=0.01,
            retry_seconds_max=0.1,
            park_probe_seconds=0.05,
        )
        task = asyncio.create_task(forwarder.run())
        try:
            yield run
        finally:
            if task.done():
                task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert not run.spool.leased()
            run.spool.commit()
            assert run.spool.drift() == 0


def row(fault: Fault, played: int, run: Run, fake: ScriptedUpstream) -> str:
    """What became of every event, as a line of the report."""
    dead = sum(row.ref.events for row in run.spool.dead())
    lost = len(run.sent) - len(fake.taken) - dead
    return (
        f"{fault!s:>13}: played {played:>2} times, of {len(run.sent)} events lost {lost}, dead letters {dead}, "
        f"twice {run.duplicates(fake)}, counted in doubt {run.observer.events['ambiguous']}"
    )


async def send_through(fault: Fault, run: Run, fake: ScriptedUpstream, figure: Callable[[str], None]) -> None:
    for _ in range(12):
        await run.put(7)
        await asyncio.sleep(0.01)
    await run.until_empty(20)
    figure(row(fault, fake.played[fault], run, fake))
    assert fake.played[fault] >= 2


def every_third(fault: Fault) -> Callable[[int], Fault]:
    return lambda at: fault if at % 3 == 1 else "yes"


@pytest.mark.parametrize("fault", sorted(TAKES, key=str))
async def test_a_fault_after_upstream_took_it_doubles_exactly_what_was_counted_as_in_doubt(fault, figure):
    async with ScriptedUpstream(every_third(fault)) as fake, relaying(fake) as run:
        await send_through(fault, run, fake, figure)
        assert set(fake.taken) == set(run.sent)
        assert run.duplicates(fake) == run.observer.events["ambiguous"] > 0
        assert not run.spool.dead()


@pytest.mark.parametrize("fault", [*REFUSES, "close"])
async def test_a_fault_in_which_upstream_took_nothing_or_said_so_doubles_nothing(fault, figure):
    async with ScriptedUpstream(every_third(fault)) as fake, relaying(fake) as run:
        await send_through(fault, run, fake, figure)
        assert Counter(run.sent) == fake.taken
        assert run.observer.events["ambiguous"] == fake.in_doubt
        assert (fake.in_doubt > 0) == (fault in RESETS)
        assert fake.elsewhere == 0
        assert not run.spool.dead()


@pytest.mark.parametrize("fault", [400, 413, 415, 422])
async def test_a_refusal_that_was_only_a_mood_cuts_batches_and_loses_no_event_in_silence(fault, figure):
    async with ScriptedUpstream(every_third(fault)) as fake, relaying(fake) as run:
        await send_through(fault, run, fake, figure)
        dead = sum(row.ref.events for row in run.spool.dead())
        assert sum(fake.taken.values()) + dead == len(run.sent)
        assert run.duplicates(fake) == 0


class Faltering:
    """Each third post goes to another upstream, with which no connection comes about."""

    timeout_seconds = 0.8

    def __init__(self, good: Upstream, bad: Upstream) -> None:
        self._ways = itertools.cycle((good, bad, good))

    async def post(self, body: bytes, headers: Mapping[str, str], *, seconds_max: float) -> Attempt:
        return await next(self._ways).post(body, headers, seconds_max=seconds_max)


@pytest.mark.parametrize("fault", ["dns", "tls", "refused"])
async def test_a_connection_that_does_not_come_about_now_and_then_loses_and_doubles_nothing(fault, figure):
    async with ScriptedUpstream() as fake, ScriptedUpstream() as plain:
        url = {
            "dns": "http://no-such-host.invalid/",
            "tls": plain.url.replace("http:", "https:"),
            "refused": f"http://127.0.0.1:{closed_port()}/",
        }[fault]
        async with client(fake.url) as good, client(url) as bad, relaying(fake, Faltering(good, bad)) as run:
            for _ in range(12):
                await run.put(7)
                await asyncio.sleep(0.01)
            await run.until_empty(20)
            figure(row(fault, run.observer.attempts["connect"], run, fake))
            assert run.observer.attempts["connect"] >= 2
            assert Counter(run.sent) == fake.taken
            assert not run.observer.attempts["ambiguous"]
            assert plain.requests == 0


@pytest.mark.parametrize("seed", range(4))
async def test_all_faults_mixed_at_random_lose_nothing_and_double_exactly_what_was_taken_in_doubt(seed, figure):
    draw = seeded(seed)
    faults = ("close", *sorted(TAKES - {"trickle"}), *REFUSES)
    plan = [draw.choice(faults) if draw.random() < 0.5 else "yes" for _ in range(150)]
    script = lambda at: plan[at] if at < len(plan) else "yes"  # noqa: E731  a name for what is passed
    async with ScriptedUpstream(script) as fake, relaying(fake) as run:
        for _ in range(150):
            await run.put(draw.randrange(1, 9), padding=draw.choice((0, 100, 3000)))
            await asyncio.sleep(0.005)
        await run.until_empty(40)
        figure(row(f"mixed, seed {seed}", fake.requests - fake.played["yes"], run, fake))
        assert set(fake.taken) == set(run.sent)
        assert run.duplicates(fake) == fake.taken_in_doubt
        # What was reset is in doubt like the rest, and was not taken: no sender can tell the two apart.
        assert run.observer.events["ambiguous"] == fake.in_doubt
        assert not run.spool.dead()


async def test_an_upstream_that_is_not_there_yet_gets_everything_once_it_is():
    fake = ScriptedUpstream(port=closed_port())
    async with relaying(fake) as run:
        for _ in range(10):
            await run.put(5)
        await asyncio.sleep(0.5)
        assert set(run.observer.attempts) == {"connect"}
        assert len(run.spool.queued()) == 10
        async with fake:
            await run.until_empty(10)
            assert Counter(run.sent) == fake.taken
