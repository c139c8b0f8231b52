"""What a fleet of relays does to upstream when an outage ends: the pace stays, the batches grow."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from fakes.poster import YES, FakePoster, Post
from fakes.relay import Bench, bench
from fakes.time import run_virtually, seeded

from relay.forwarder.delivery import ConnectFailed

RELAYS, PERIOD, STEADY, OUTAGE, AFTER = 60, 10, 1200, 3600, 1500
WINDOW = 30


async def app(b: Bench, seed: int) -> None:
    """One flush of an SDK each period, out of step with the other apps."""
    draw = seeded(seed)
    await asyncio.sleep(draw.random() * PERIOD)
    for at in range((STEADY + OUTAGE + AFTER) // PERIOD):
        await b.put(*(f"{seed}-{at}-{i}" for i in range(5)))
        await asyncio.sleep(PERIOD)


@pytest.mark.slow
def test_after_an_outage_a_fleet_peaks_at_no_more_than_a_fifth_above_its_steady_rate(figure):
    async def main():
        loop = asyncio.get_running_loop()
        start = loop.time()
        down = (start + STEADY, start + STEADY + OUTAGE)
        fleet: list[FakePoster] = []

        def answer(post: Post):
            return ConnectFailed("refused") if down[0] < post.at < down[1] else YES

        async with AsyncExitStack() as stack:
            apps = []
            for seed in range(RELAYS):
                fleet.append(FakePoster(answer))
                b = await stack.enter_async_context(bench(fleet[-1], seed=seed))
                apps.append(asyncio.create_task(app(b, seed)))
            await asyncio.gather(*apps)
            await asyncio.sleep(5)
        posts = Counter(int((post.at - start) // WINDOW) for poster in fleet for post in poster.posts)
        steady = [posts[at] for at in range(10, STEADY // WINDOW - 1)]
        after = [posts[at] for at in range((STEADY + OUTAGE) // WINDOW + 1, (STEADY + OUTAGE + AFTER) // WINDOW - 1)]
        ratio = max(after) / (sum(steady) / len(steady))
        figure(f"{RELAYS} relays after {OUTAGE // 60} min of outage: peak {ratio:.2f} of the steady request rate")
        assert ratio <= 1.2

    run_virtually(main())
