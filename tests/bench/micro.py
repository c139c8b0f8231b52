"""What each step of an event's way costs by itself: CPU microseconds an event, the best of several rounds.

    .venv/bin/python tests/bench/micro.py

For telling where a change pays. It adds up to less than the whole: sockets, the event loop and the hand-over between
threads are not in it, tests/bench/bench.py has them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from load import requests

from relay import wire
from relay.forwarder.body import assemble
from relay.listener.simple import read_head
from relay.spool.record import Record, decode, encode
from relay.spool.store import Changes, Row, Store

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 7
ROUND_SECONDS = 0.05
LIMITS = wire.Limits(event_bytes_max=10 << 20, events_per_request_max=20_000, envelope_bytes_max=256 << 10)
BATCH_EVENTS = 1000


def microseconds(work: Callable[[], object]) -> float:
    """CPU microseconds of one call, the best of several rounds."""
    calls, took = 1, 0.0
    while took < ROUND_SECONDS / 2:
        calls *= 2
        took = cpu_of(work, calls)
    return min(cpu_of(work, calls) for _ in range(ROUNDS)) / calls * 1e6


def cpu_of(work: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return time.process_time() - began


def steps(events: int, store: Store) -> dict[str, tuple[float, int]]:
    """Microseconds of each step, and how many events one call is for."""
    request = requests(events)[0]
    head = read_head(request)
    assert head is not None, "the bench's own requests are simple"
    body = request[head.body_at :]
    parsed = wire.parse_usual(body, limits=LIMITS, strip_private=True)
    assert parsed is not None, "the bench's own bodies are usual"
    record = Record("client-bench", parsed.envelope, b"", parsed.text, parsed.events, 0, None)
    row = encode(record)
    chunks = [decode(number, 1, row) for number in range(max(1, BATCH_EVENTS // events))]
    ids = iter(range(store.last_id() + 1, 1 << 62))

    def commit() -> None:
        number = next(ids)
        store.commit(Changes(rows=[Row(number, 1, events, 0, row)], deletes=[number - 1]))

    return {
        "read the head": (microseconds(lambda: read_head(request)), events),
        "decode the body": (microseconds(lambda: wire.parse_usual(body, limits=LIMITS, strip_private=True)), events),
        "encode the chunk": (microseconds(lambda: encode(record)), events),
        "commit it alone": (microseconds(commit), events),
        "check a stored chunk": (microseconds(lambda: decode(1, 1, row)), events),
        "assemble a batch": (microseconds(lambda: assemble(chunks, "gzip")), events * len(chunks)),
    }


def main() -> None:
    sizes = (1, 10, 100)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = Store(Path(folder), bytes_max=1 << 30)
        columns = [steps(events, store) for events in sizes]
        store.close()
    print("| CPU µs an event | " + " | ".join(f"{events} a request" for events in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{took / events:.3f}" for took, events in (c[name] for c in columns)) + " |")


if __name__ == "__main__":
    main()
