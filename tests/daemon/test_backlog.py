"""Beside a million queued events the real daemon answers at once and stays small; and it delivers them in no time."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon.harness import CountingUpstream, Daemon, envelope, free_port, make_event, post, running, wait_until

from relay.spool.folder import hold
from relay.spool.record import Record, encode
from relay.spool.store import Changes, Row, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNKS, EVENTS_PER_CHUNK, CHUNKS_PER_COMMIT = 100_000, 10, 2_000
STARTS = 3
LANES, LANE_CHUNKS = 1_000, 20_000
LANE_BYTES_MAX = 8_192
FIRST_ANSWER_SECONDS_MAX = 1.0
RESIDENT_BYTES_MAX = 80 * 1000 * 1000


def fill(directory: Path, *, chunks: int = CHUNKS, lanes: int = 1) -> None:
    """Lay a backlog on disk with the relay's own store; its rows differ in their ids and lanes alone, for speed."""
    folder = hold(directory)
    store = Store(folder.path, bytes_max=8 << 30)
    now_ms = time.time_ns() // 1_000_000
    text = b",".join(make_event("backlog", number) for number in range(EVENTS_PER_CHUNK))
    record = Record("secret-test", b"", b"", text, EVENTS_PER_CHUNK, now_ms, None)
    row = encode(record)
    store.commit(Changes(lanes=[(1, "secret-test"), *((lane, f"secret-{lane}") for lane in range(2, lanes + 1))]))
    for start in range(1, chunks + 1, CHUNKS_PER_COMMIT):
        ids = range(start, start + CHUNKS_PER_COMMIT)
        store.commit(Changes(rows=[Row(number, number % lanes + 1, EVENTS_PER_CHUNK, now_ms, row) for number in ids]))
        store.checkpoint()
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


@contextmanager
def counter() -> Iterator[str]:
    """Run an upstream in a process of its own that only adds up; gives its URL, which tells the sums."""
    port = free_port()
    script = Path(__file__).parents[1] / "bench" / "load.py"
    process = subprocess.Popen([sys.executable, str(script), "count", "--port", str(port)])
    url = f"http://127.0.0.1:{port}/v1/log_event"
    try:
        wait_until("the counter listens", lambda: sums(url) is not None)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def sums(url: str) -> dict[str, int] | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own URL
            return json.load(answer)
    except OSError:
        return None


def cpu_seconds(daemon: Daemon) -> float:
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_queued_events_are_delivered_each_once_in_full_batches(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    fill(tmp_path / "queue")
    total = CHUNKS * EVENTS_PER_CHUNK
    with counter() as url:
        began = time.monotonic()
        with running(Daemon(tmp_path, url, settings={"queue": {"bytes_max": "8GiB"}})) as daemon:
            used = cpu_seconds(daemon)
            wait_until("the whole index is loaded", lambda: daemon.status().queue.recovered_events == total, seconds=60)
            daemon.wait_drained(200)
            seconds, used = time.monotonic() - began, cpu_seconds(daemon) - used
            got = sums(url)
    assert got is not None
    figure(
        f"{total:,} events drained in {seconds:.1f} s by {got['requests']:,} requests, "
        f"{used * 1e6 / total:.1f} ms of CPU for 1,000 of them"
    )
    assert got["events"] == total
    assert got["requests"] <= total / 1000 * 1.1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_lanes_take_little_more_memory_than_one_with_the_same_events(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    resident, used, requests = {}, {}, {}
    for lanes in (1, LANES):
        folder = tmp_path / str(lanes)
        fill(folder / "queue", chunks=LANE_CHUNKS, lanes=lanes)
        with counter() as url, running(Daemon(folder, url)) as daemon:
            daemon.wait_counted()
            daemon.wait_drained(100)
            resident[lanes], used[lanes] = daemon.resident_bytes(), cpu_seconds(daemon)
            got = sums(url)
            assert got is not None
            assert got["events"] == LANE_CHUNKS * EVENTS_PER_CHUNK
            requests[lanes] = got["requests"]
    more = resident[LANES] - resident[1]
    figure(
        f"{LANE_CHUNKS * EVENTS_PER_CHUNK:,} events of {LANES:,} keys instead of one: {more / 1e6:+.1f} MB, "
        f"{requests[LANES]:,} requests instead of {requests[1]:,}, {used[LANES]:.1f} s of CPU instead of {used[1]:.1f}"
    )
    assert more < LANES * LANE_BYTES_MAX
    assert requests[LANES] <= LANES * 1.1, "what a lane has goes in one batch, but for the first while the index loads"
