"""An upstream in memory, for tests in virtual time: what it answers is a function of what it is sent."""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relay.forwarder.delivery import Answer, Response
from relay.forwarder.upstream import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

YES = Response(202, b'{"success": true}')


@dataclass
class Post:
    at: float
    key: str
    headers: Mapping[str, str]
    events: list[Any]
    names: list[str]
    answer: Answer | None = None


@dataclass
class FakePoster:
    answer: Callable[[Post], Answer] = lambda _post: YES
    seconds: float | Callable[[Post], float] = 0.02
    timeout_seconds: float = 30.0
    posts: list[Post] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    """Names of the events it has said yes to, in order, repeats and all."""
    in_flight: int = 0
    in_flight_most: int = 0

    async def post(self, body: bytes, headers: Mapping[str, str], *, seconds_max: float) -> Attempt:
        assert seconds_max > 0
        text = zlib.decompress(body, 31) if headers.get("content-encoding") == "gzip" else body
        events = json.loads(text)["events"]
        names = [event["eventName"] for event in events]
        post = Post(asyncio.get_running_loop().time(), headers["statsig-api-key"], headers, events, names)
        self.posts.append(post)
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds(post) if callable(self.seconds) else self.seconds)
        finally:
            self.in_flight -= 1
        post.answer = self.answer(post)
        if isinstance(post.answer, Response) and post.answer.status // 100 == 2:
            self.taken += names
        return Attempt(post.answer)
