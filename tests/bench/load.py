"""A closed-loop load generator and a counting upstream, cheap enough not to be what is measured.

python load.py send --port 9463 --events 10 --seconds 5 --connections 64     prints one JSON object
python load.py send --port 9463 --events 10 --seconds 5 --rate 500           times count from when each is due
python load.py send --port 9463 --events 100 --requests 10000                so many and no more
python load.py count --port 9999                                            serves until it is ended
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from typing import cast

POOL = 512
"""Distinct requests that take turns: enough that nothing compresses better than honest traffic would."""


def event(rng: random.Random) -> bytes:
    """Give an event of some 340 bytes whose user, time, value and ids vary as recorded ones do."""
    user = {
        "userID": f"user-{rng.randrange(100_000):05d}",
        "country": "US",
        "appVersion": f"4.2{rng.randrange(10)}.1",
        "customIDs": {"deviceID": rng.randbytes(16).hex()},
    }
    metadata = {
        "page": f"/cart/item-{rng.randrange(10_000):04d}",
        "trace": rng.randbytes(8).hex(),
        "latency_ms": str(100 + rng.randrange(100)),
    }
    return json.dumps(
        {
            "eventName": f"checkout_step_{rng.randrange(10)}",
            "value": f"{rng.randrange(100)}.{rng.randrange(100):02d}",
            "time": 1_795_000_000_000 + rng.randrange(10**8),
            "user": user,
            "metadata": metadata,
            "secondaryExposures": [],
        },
        separators=(",", ":"),
    ).encode()


def requests(events: int) -> list[bytes]:
    """Make whole HTTP requests of `events` events each."""
    rng = random.Random(events)  # noqa: S311 – payloads, no secrets
    made = []
    for _ in range(POOL if events <= 100 else 32):
        text = b",".join(event(rng) for _ in range(events))
        body = b'{"events":[' + text + b'],"statsigMetadata":{"sdkType":"py-server","sdkVersion":"1.0.0"}}'
        head = (
            "POST /v1/log_event HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"statsig-api-key: client-bench\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


class Client(asyncio.Protocol):
    """One connection: sends a request, waits for the answer, sends the next."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport
        self.answer = b""
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send_when_due()

    def send_when_due(self) -> None:
        now = time.perf_counter()
        self.sent_at = self.run.next_due(now)
        if self.sent_at > now:
            asyncio.get_running_loop().call_later(self.sent_at - now, self.send)
        else:
            self.send()

    def send(self) -> None:
        self.transport.write(self.run.next_request())

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        if at < 0 or len(body) < int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        self.answer = b""
        if self.run.answered(head[9:12], time.perf_counter() - self.sent_at):
            self.send_when_due()
        else:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.run.closed(exc)


class Run:
    """A load of so many seconds or requests, as fast as answers come or at a rate, and what came of it."""

    def __init__(self, events: int, seconds: float, connections: int, *, requests_max: int, rate: float) -> None:
        self.events = events
        self.requests_left = requests_max or 1 << 62
        self.rate = rate
        self.due = 0
        self.pool = requests(events)
        self.turn = 0
        self.began = time.perf_counter()
        self.until = self.began + (seconds if not requests_max else 3600)
        self.open = connections
        self.times: list[float] = []
        self.accepted = self.refused = self.broken = 0
        self.ended = asyncio.get_running_loop().create_future()

    def next_due(self, now: float) -> float:
        """When the next request is to be sent; at a rate, whether or not the last one was answered in time."""
        self.requests_left -= 1
        if not self.rate:
            return now
        self.due += 1
        return self.began + self.due / self.rate

    def next_request(self) -> bytes:
        self.turn = (self.turn + 1) % len(self.pool)
        return self.pool[self.turn]

    def answered(self, status: bytes, seconds: float) -> bool:
        self.times.append(seconds)
        if status == b"202":
            self.accepted += 1
        else:
            self.refused += 1
        return time.perf_counter() < self.until and self.requests_left > 0

    def closed(self, exc: BaseException | None) -> None:
        self.broken += exc is not None
        self.open -= 1
        if not self.open and not self.ended.done():
            self.ended.set_result(None)

    def result(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        times = sorted(self.times) or [0.0]
        return {
            "accepted_requests": self.accepted,
            "accepted_events": self.accepted * self.events,
            "refused": self.refused,
            "broken": self.broken,
            "requests_per_second": self.accepted / seconds,
            "p50_ms": times[len(times) // 2] * 1e3,
            "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        }


async def send(given: argparse.Namespace) -> None:
    run = Run(given.events, given.seconds, given.connections, requests_max=given.requests, rate=given.rate)
    loop = asyncio.get_running_loop()
    for _ in range(given.connections):
        await loop.create_connection(lambda: Client(run), "127.0.0.1", given.port)
    await run.ended
    print(json.dumps(run.result()))


class Upstream(asyncio.Protocol):
    """Answers 202 to every POST and adds up `statsig-event-count`; GET tells the sum."""

    events = requests = 0

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.data[:end]).lower()
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = end + 4 + int(fields.get(b"content-length", b"0"))
            if len(self.data) < length:
                return
            del self.data[:length]
            self.answer(head, fields)

    def answer(self, head: bytes, fields: dict[bytes, bytes]) -> None:
        body = b'{"success":true}'
        if head.startswith(b"get"):
            body = json.dumps({"events": Upstream.events, "requests": Upstream.requests}).encode()
        else:
            Upstream.requests += 1
            Upstream.events += int(fields.get(b"statsig-event-count", b"0"))
        start = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(start % len(body) + body)


async def count(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("send", "count"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=0, help="end after so many; 0: after --seconds")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second over all connections; 0: no pace")
    parser.add_argument("--cpu", type=int, default=None)
    given = parser.parse_args()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    job = count(given.port) if given.job == "count" else send(given)
    try:
        import uvloop
    except ImportError:
        asyncio.run(job)
    else:
        uvloop.run(job)


if __name__ == "__main__":
    main()
