"""Hours of a restless upstream in seconds of virtual time; what one seed has played, it plays again to the byte."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from fakes.poster import YES, FakePoster, Post
from fakes.relay import bench
from fakes.time import run_virtually, seeded

from relay.forwarder.body import BATCH_ID_HEADER
from relay.forwarder.delivery import Answer, ConnectFailed, Malformed, Reset, Response, TimedOut

if TYPE_CHECKING:
    from random import Random

HOURS = 8
MOODS: tuple[Answer, ...] = (
    YES, YES, Response(503), Response(429, retry_after="40"), Response(401), ConnectFailed("refused"),
    TimedOut(sent=False, detail=""), Reset(sent=False, detail=""), Malformed(sent=False, detail=""),
)  # fmt: skip

Trace = list[tuple[float, str, str, tuple[str, ...], str]]
"""Of every post: when, under which key, the batch's id, the events in it, and the answer."""


class Moods:
    """An upstream whose mood lasts for minutes, or for an hour."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self._mood = YES
        self._until = 0.0
        self.well = False

    def __call__(self, post: Post) -> Answer:
        if post.at >= self._until:
            self._mood = self._draw.choice(MOODS)
            self._until = post.at + self._draw.choice((60, 600, 3600))
        return YES if self.well else self._mood


async def play(seed: int) -> Trace:
    """Post events of three keys at random moments of some hours, then let upstream be well."""
    draw, loop = seeded(seed), asyncio.get_running_loop()
    moods = Moods(draw)
    async with bench(FakePoster(moods, seconds=lambda _: draw.random()), seed=seed, batch_events_max=50) as b:
        end = loop.time() + HOURS * 3600
        while loop.time() < end:
            count = len(b.sent)
            names = [f"e{count + at}" for at in range(draw.randrange(1, 20))]
            await b.put(*names, key=draw.choice(("secret-a", "secret-b", "secret-c")), padding=draw.randrange(200))
            await asyncio.sleep(draw.expovariate(1 / 60))
        moods.well = True
        await b.until_empty(3600)
        assert Counter(b.poster.taken) == Counter(b.sent), "nothing lost, and nothing twice, for nothing was in doubt"
        return [
            (post.at, post.key, post.headers[BATCH_ID_HEADER], tuple(post.names), repr(post.answer))
            for post in b.poster.posts
        ]


def digest(trace: Trace) -> str:
    return hashlib.sha256(repr(trace).encode()).hexdigest()


@pytest.mark.parametrize("seed", [1, 20261124])
def test_one_seed_plays_hours_of_outage_twice_in_the_same_way(seed: int) -> None:
    first, second = (run_virtually(play(seed)) for _ in range(2))
    differing = next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), None)
    assert digest(first) == digest(second), f"{len(first)} posts and {len(second)}; first difference: {differing}"
    assert {answer for *_, answer in first} >= {repr(YES)}
    assert len({answer for *_, answer in first}) > 3, "the outages of this seed are too dull to prove anything"


def test_another_seed_plays_otherwise() -> None:
    assert digest(run_virtually(play(1))) != digest(run_virtually(play(2)))
