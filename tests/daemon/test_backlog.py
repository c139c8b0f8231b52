"""Beside a million queued events the real daemon answers at once and stays small."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import CountingUpstream, Daemon, envelope, make_event, post, running, wait_until

from relay.spool.folder import hold
from relay.spool.record import Record, encode
from relay.spool.store import Changes, Row, Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNKS, EVENTS_PER_CHUNK, CHUNKS_PER_COMMIT = 100_000, 10, 2_000
STARTS = 3
FIRST_ANSWER_SECONDS_MAX = 1.0
RESIDENT_BYTES_MAX = 80 * 1000 * 1000


def fill(directory: Path) -> None:
    """Lay a backlog on disk with the relay's own store; its rows differ in their ids alone, for speed."""
    folder = hold(directory)
    store = Store(folder.path, bytes_max=8 << 30)
    now_ms = time.time_ns() // 1_000_000
    text = b",".join(make_event("backlog", number) for number in range(EVENTS_PER_CHUNK))
    record = Record("secret-test", b"", b"", text, EVENTS_PER_CHUNK, now_ms, None)
    row = encode(record)
    for start in range(1, CHUNKS + 1, CHUNKS_PER_COMMIT):
        ids = range(start, start + CHUNKS_PER_COMMIT)
        rows = [Row(number, 1, EVENTS_PER_CHUNK, now_ms, row) for number in ids]
        store.commit(Changes(lanes=[(1, "secret-test")] if start == 1 else [], rows=rows))
    store.close()
    folder.close()


def seconds_to_first_202(daemon: Daemon, number: int) -> float:
    """Start it and post until an event is taken."""
    body = envelope([make_event("first", number)])
    began = time.monotonic()
    daemon.start()
    while True:
        try:
            if post(daemon.url, body).accepted:
                return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            assert daemon.alive(), daemon.log
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_queued_events_delay_no_answer_and_take_little_memory(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    fill(tmp_path / "queue")
    with CountingUpstream() as upstream:
        upstream.close()
        daemon = Daemon(tmp_path, upstream.url, settings={"queue": {"bytes_max": "8GiB"}})
        seconds = []
        for number in range(STARTS):
            seconds.append(seconds_to_first_202(daemon, number))
            daemon.kill9()
        with running(daemon):
            total = CHUNKS * EVENTS_PER_CHUNK + STARTS
            wait_until("the whole index is loaded", lambda: daemon.queued() == total, seconds=30)
            assert post(daemon.url, envelope([make_event("late", 1)])).accepted
            resident = daemon.resident_bytes()
            metrics = daemon.metrics()
    figure(f"first 202 beside {total:,} events: {min(seconds):.2f} s (of {STARTS} starts), {resident / 1e6:.0f} MB")
    assert metrics.total("queue_recovered_events_total") == total
    assert min(seconds) < FIRST_ANSWER_SECONDS_MAX, seconds
    assert resident < RESIDENT_BYTES_MAX
