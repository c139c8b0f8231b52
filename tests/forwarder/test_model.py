"""Spool and forwarder against a model, in any order of events: crashes, moods of upstream, steps of the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from fakes.poster import YES, FakePoster, Post
from fakes.relay import FAR, Counting, record
from fakes.spool import FakeSpool
from fakes.time import VirtualLoop, Wall, seeded
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.errors import StoreFailed, StoreFull
from relay.forwarder.delivery import Answer, ConnectFailed, Response, TimedOut
from relay.forwarder.loop import Forwarder

MOODS: dict[str, Answer] = {
    "yes": YES,
    "down": ConnectFailed("refused"),
    "busy": Response(503, retry_after="20"),
    "slow down": Response(429),
    "bad key": Response(401),
    "not found": Response(404),
    "portal": Response(200, b"<html>"),
    "refuses everything": Response(400, b"no"),
    "took it, said nothing": TimedOut(sent=True, detail=""),
}
KEYS = ("secret-a", "secret-b", "")


class Relaying(RuleBasedStateMachine):
    """What upstream took more than once must have been in doubt, or in flight at a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.mood = "yes"
        self.spool = FakeSpool()
        self.observer = Counting()
        self.poster = FakePoster(self.answer, seconds=0.05)
        self.taken: Counter[str] = Counter()
        self.sent: list[str] = []
        self.bad: set[str] = set()
        self.refused: set[str] = set()
        self.may_be_doubled: Counter[str] = Counter()
        self.random = seeded(len(self.sent)).random
        self.run(self.begin())

    def run(self, main):
        return self.loop.run_until_complete(main)

    async def begin(self) -> None:
        self.wall = getattr(self, "wall", None) or Wall()
        self.forwarder = Forwarder(
            spool=self.spool,
            upstream=self.poster,
            default_key=lambda: "default-key",
            observer=self.observer,
            host="upstream.test",
            monotonic=self.loop.time,
            wall=self.wall,
            random=self.random,
            batch_events_max=12,
            batch_bytes_max=5_000,
            in_flight_max=3,
            age_seconds_max=0,
        )
        self.task = self.loop.create_task(self.forwarder.run())
        await asyncio.sleep(0)

    def answer(self, post: Post) -> Answer:
        said = MOODS[self.mood]
        if self.mood == "bad key" and post.key != KEYS[0]:
            said = YES
        if said is YES and self.bad & set(post.names):
            said = Response(400, b"bad event")
        if said is YES and len(post.names) > 1 and sum(len(str(event)) for event in post.events) > 2_000:
            said = Response(413)
        if self.mood == "refuses everything" and len(post.names) == 1:
            self.refused.update(post.names)
        took_in_silence = self.mood == "took it, said nothing" and not self.bad & set(post.names)
        if said is YES or took_in_silence:
            self.taken.update(post.names)
        if took_in_silence:
            self.may_be_doubled.update(post.names)
        return said

    @rule(key=st.sampled_from(KEYS), events=st.integers(1, 6), user=st.integers(0, 1), pad=st.sampled_from([0, 300]))
    def put(self, key: str, events: int, user: int, pad: int) -> None:
        names = [f"e{len(self.sent) + at}" for at in range(events)]
        self.sent += names
        new = record(names, at_ms=self.wall.ms(), key=key, padding=pad, envelope=b'"u":%d' % user)
        self.run(self.spool.append([new], deadline=FAR))

    @rule(key=st.sampled_from(KEYS))
    def put_a_bad_one(self, key: str) -> None:
        self.bad.add(f"e{len(self.sent) + 1}")
        self.put(key, 4, 0, 0)

    @rule(mood=st.sampled_from(sorted(MOODS)))
    def change_of_mood(self, mood: str) -> None:
        self.mood = mood

    @rule(verb=st.sampled_from(["read", "bury", "replace"]), error=st.sampled_from([StoreFull("-"), StoreFailed("-")]))
    def the_disk_fails(self, verb: str, error: Exception) -> None:
        self.spool.fail = lambda asked: error if asked == verb else None

    @rule()
    def the_disk_works(self) -> None:
        self.spool.fail = lambda _verb: None

    @rule(seconds=st.sampled_from([0.01, 0.06, 1, 61, 1000, 7200]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(seconds=st.sampled_from([-1e7, -100, 100, 1e7]))
    def the_clock_steps(self, seconds: float) -> None:
        self.wall.offset += seconds

    @rule()
    def crash(self) -> None:
        """What was in flight, or acked without a commit, may come again; nothing else."""
        for row in self.spool.rows.values():
            if row.leased or row.acked:
                self.may_be_doubled.update(name for name in self.sent if b'"%s"' % name.encode() in self.texts(row))
        after = self.spool.crash()
        self.run(self.end())
        self.spool = after
        self.run(self.begin())

    @precondition(lambda self: not self.task.done())
    @rule(seconds=st.sampled_from([0.0, 0.02, 5.0]))
    def stop_and_start(self, seconds: float) -> None:
        """A clean stop doubles nothing but what it counts."""
        in_doubt = self.observer.events["ambiguous"]
        leased = [row for row in self.spool.rows.values() if row.leased or row.acked]
        self.run(self.forwarder.drain(seconds))
        if self.observer.events["ambiguous"] > in_doubt:
            for row in leased:
                self.may_be_doubled.update(name for name in self.sent if b'"%s"' % name.encode() in self.texts(row))
        self.run(self.end())
        assert not self.spool.leased()
        self.run(asyncio.sleep(0))
        self.spool = self.spool.crash()
        self.run(self.begin())

    def texts(self, row) -> bytes:
        return b"".join(self.spool.texts([row]))

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    @invariant()
    def the_loop_lives(self) -> None:
        if self.task.done():
            self.task.result()

    @invariant()
    def nothing_is_doubled_that_was_not_in_doubt(self) -> None:
        for name, count in self.taken.items():
            assert count <= 1 + self.may_be_doubled[name], name

    @invariant()
    def every_event_is_somewhere(self) -> None:
        kept = b"".join(self.texts(row) for row in self.spool.rows.values())
        lost = [name for name in self.sent if not self.taken[name] and b'"%s"' % name.encode() not in kept]
        assert not lost

    def teardown(self) -> None:
        """Once all is well everything arrives; only events that are bad, or were refused, are dead letters."""
        try:
            self.mood = "yes"
            self.spool.fail = lambda _verb: None
            self.run(self.settle())
            texts = b"".join(self.texts(row) for row in self.spool.dead())
            dead = {name for name in self.sent if b'"%s"' % name.encode() in texts}
            assert set(self.taken) >= set(self.sent) - dead
            assert self.bad <= dead <= self.bad | self.refused
            assert not self.bad & set(self.taken)
            assert sum(row.ref.events for row in self.spool.dead()) == len(dead)
            self.nothing_is_doubled_that_was_not_in_doubt()
            self.run(self.end())
        finally:
            self.loop.close()
            asyncio.set_event_loop(None)

    async def settle(self) -> None:
        end = self.loop.time() + 8 * 3600
        while self.spool.queued():
            assert self.loop.time() < end, "what is queued never goes out"
            await asyncio.sleep(5)


TestRelaying = Relaying.TestCase
TestRelaying.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
