"""The real daemon before an upstream that plays tricks on real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import aiohttp
from daemon.harness import Daemon, running
from fakes.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEYS = [f"secret-{at}" for at in range(100)]
BAD = KEYS[7]


@asynccontextmanager
async def relaying(folder: Path, fake: ScriptedUpstream, **upstream: object) -> AsyncIterator[Daemon]:
    daemon = Daemon(folder, fake.url, settings={"upstream": upstream})
    with_daemon = running(daemon)
    await asyncio.to_thread(with_daemon.__enter__)
    try:
        yield daemon
    except BaseException as exc:
        await asyncio.to_thread(with_daemon.__exit__, type(exc), exc, exc.__traceback__)
        raise
    await asyncio.to_thread(with_daemon.__exit__, None, None, None)


class Apps:
    """Posts single events under many keys and remembers when each was sent."""

    def __init__(self, daemon: Daemon) -> None:
        self._url = daemon.url
        self._numbers = count()
        self.sent_at: dict[str, float] = {}

    async def post(self, session: aiohttp.ClientSession, key: str) -> None:
        name = f"{key}/{next(self._numbers)}"
        self.sent_at[name] = asyncio.get_running_loop().time()
        body = {"events": [{"eventName": name, "time": round(time.time() * 1000)}]}
        async with session.post(self._url, json=body, headers={"statsig-api-key": key}) as answer:
            assert answer.status == 202

    async def post_for(self, seconds: float) -> float:
        """Have each key post once a second; give the time it began."""
        began = asyncio.get_running_loop().time()
        async with aiohttp.ClientSession() as session:
            while asyncio.get_running_loop().time() < began + seconds:
                for key in KEYS:
                    await self.post(session, key)
                    await asyncio.sleep(0.5 / len(KEYS))
                await asyncio.sleep(0.3)
        return began


def p99_ms(delays: list[float]) -> float:
    return sorted(delays)[int(len(delays) * 0.99)] * 1000


async def test_one_key_of_a_hundred_that_is_refused_delays_no_other_and_heals_without_a_restart(tmp_path, figure):
    async with ScriptedUpstream() as fake, relaying(tmp_path, fake, park_probe_seconds=1) as daemon:
        apps = Apps(daemon)

        def delays(since: float, until: float) -> list[float]:
            sent = {name: at for name, at in apps.sent_at.items() if since <= at < until and BAD not in name.split("/")}
            assert set(sent) <= set(fake.taken), "the other keys' events have all arrived"
            return [fake.taken_at[name] - at for name, at in sent.items()]

        loop = asyncio.get_running_loop()
        calm = await apps.post_for(5)
        fake.refused_keys[BAD] = 401
        refusing = await apps.post_for(5)
        healed = loop.time()
        await asyncio.sleep(1)
        before, during = p99_ms(delays(calm, refusing)), p99_ms(delays(refusing, healed))
        waiting = set(apps.sent_at) - set(fake.taken)
        assert len(waiting) >= 3
        assert {name.split("/")[0] for name in waiting} == {BAD}
        (lane,) = (await asyncio.to_thread(daemon.status)).lanes
        assert (lane.state, lane.error, lane.events) == ("parked", "HTTP 401", len(waiting))
        assert fake.played[401] <= 9, "a probe a second"

        del fake.refused_keys[BAD]
        healed = loop.time()
        async with asyncio.timeout(10):
            while waiting - set(fake.taken):
                await asyncio.sleep(0.01)
        figure(
            f"one key of 100 answered 401: the others' p99 delivery delay {before:.0f} ms before, {during:.0f} ms "
            f"during; the key's {len(waiting)} events arrived {loop.time() - healed:.1f} s after it healed"
        )
        assert during <= 2 * before + 150
        assert set(fake.taken.values()) == {1}
        assert set(fake.taken) == set(apps.sent_at)
