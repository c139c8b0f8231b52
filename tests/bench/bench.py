"""What the relay costs, beside a bare aiohttp server, beside nginx as a plain proxy, and beside the bare disk.

    .venv/bin/python tests/bench/bench.py                 three runs of each, some four minutes
    .venv/bin/python tests/bench/bench.py --runs 1 --seconds 2 --sizes 10

Only ratios between rows of one table mean anything: machines differ, and shared ones from minute to minute. The server
under test is pinned to one CPU, load and upstream to another; CPU seconds are the kernel's, of the whole process, and
include delivery: they are read when upstream has everything. The disk rows write the same bytes with and without us.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relay.spool.store import Changes, Store
from relay.spool.store import Row as StoredRow
from relay.spool.writer import CHECKPOINT_BYTES, COMMIT_LOG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
DRAIN_SECONDS_MAX = 60

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors error;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 100000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
RELAY = """
[listen]
address = "127.0.0.1:{port}"
[queue]
directory = "{folder}"
bytes_max = "8GiB"
[upstream]
url = "http://127.0.0.1:{upstream}/v1/log_event"
[admin]
address = "127.0.0.1:{admin}"
[log]
level = "error"
"""


@dataclass(frozen=True)
class Row:
    """One server under one load."""

    server: str
    events: int
    requests_per_second: float
    cpu_ms_per_1000_events: float
    p50_ms: float
    p99_ms: float
    disk_bytes_per_event: float
    resident_mb: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def relay(folder: Path, port: int, upstream: int) -> list[str]:
    config = folder / "relay.toml"
    config.write_text(RELAY.format(port=port, folder=folder, upstream=upstream, admin=free_port()))
    return [sys.executable, "-m", "relay", "run", "--config", str(config)]


def bare_aiohttp(_folder: Path, port: int, _upstream: int) -> list[str]:
    return [sys.executable, str(HERE / "bare_aiohttp.py"), str(port)]


def nginx(folder: Path, port: int, upstream: int) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    return ["nginx", "-p", str(folder), "-c", str(config)]


def servers() -> dict[str, Callable[[Path, int, int], list[str]]]:
    found = {"bare aiohttp": bare_aiohttp, "relay": relay}
    return {"nginx proxy": nginx, **found} if shutil.which("nginx") else found


@contextlib.contextmanager
def running(argv: list[str], port: int, cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server on one CPU, wait until it listens, end it by its pid."""
    process = subprocess.Popen(["taskset", "-c", str(cpu), *argv], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{argv[0]} does not listen")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def upstream_events(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return int(json.load(answer)["events"])


def load(port: int, events: int, **wanted: float) -> dict[str, float]:
    """Send a load from the other CPU; `wanted` as load.py has its options."""
    argv = [sys.executable, str(HERE / "load.py"), "send", "--port", str(port), "--events", str(events), "--cpu", "1"]
    argv += [text for name, value in wanted.items() for text in (f"--{name}", str(value))]
    result = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    if result["refused"] or result["broken"]:
        sys.exit(f"{result['refused']} requests were refused and {result['broken']} connections broke: no figures")
    return result


def measure(name: str, events: int, seconds: float, connections: int) -> Row:
    """Load one server; its CPU is read again once everything has been delivered."""
    port, upstream = free_port(), free_port()
    counting = [sys.executable, str(HERE / "load.py"), "count", "--port", str(upstream)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, running(counting, upstream, 1):
        argv = servers()[name](Path(folder), port, upstream)
        with running(argv, port, 0) as server:
            load(port, events, seconds=0.5, connections=connections)  # warm up
            time.sleep(0.5)
            cpu, wrote = cpu_seconds(server.pid), written_bytes(server.pid)
            before = upstream_events(upstream)
            result = load(port, events, seconds=seconds, connections=connections)
            if name == "relay":
                wait_delivered(upstream, before + int(result["accepted_events"]))
            cpu, wrote = cpu_seconds(server.pid) - cpu, written_bytes(server.pid) - wrote
            accepted = result["accepted_events"]
            return Row(
                name,
                events,
                result["requests_per_second"],
                cpu / accepted * 1e6,
                result["p50_ms"],
                result["p99_ms"],
                wrote / accepted,
                resident_mb(server.pid),
            )


def pace(seconds: float) -> tuple[float, float]:
    """Answer times in ms, p50 and p99, of a relay that gets 500 requests of 10 events a second."""
    port, upstream = free_port(), free_port()
    counting = [sys.executable, str(HERE / "load.py"), "count", "--port", str(upstream)]
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        running(counting, upstream, 1),
        running(relay(Path(folder), port, upstream), port, 0),
    ):
        result = load(port, 10, seconds=seconds, rate=500)
        return result["p50_ms"], result["p99_ms"]


def wait_delivered(upstream: int, wanted: int) -> None:
    until = time.monotonic() + DRAIN_SECONDS_MAX
    while upstream_events(upstream) < wanted:
        if time.monotonic() > until:
            sys.exit("upstream did not get everything in time: no figures")
        time.sleep(0.02)


def bare_disk(commit_bytes: int, commits: int) -> float:
    """Commits a second of a plain file: append and fdatasync."""
    block = os.urandom(commit_bytes)
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        began = time.perf_counter()
        for _ in range(commits):
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
        return commits / (time.perf_counter() - began)


def our_disk(commit_bytes: int, commits: int) -> float:
    """Commits a second of the queue's store: one row of the same bytes each."""
    block = os.urandom(commit_bytes)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = Store(Path(folder), bytes_max=8 << 30)
        logged = 0
        began = time.perf_counter()
        for number in range(commits):
            rows = [StoredRow(number + 1, 1, 1, 0, block)]
            store.commit(Changes(rows=rows, deletes=[number] if number else []))
            logged += COMMIT_LOG_BYTES + commit_bytes
            if logged > CHECKPOINT_BYTES:
                store.checkpoint()
                logged = 0
        rate = commits / (time.perf_counter() - began)
        store.close()
        return rate


def median_row(rows: list[Row]) -> Row:
    first = rows[0]
    numbers = [statistics.median(getattr(row, name) for row in rows) for name in list(Row.__dataclass_fields__)[2:]]
    return Row(first.server, first.events, *numbers)


def show(rows: list[Row]) -> None:
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; medians\n")
    print("| server | events a request | requests/s | events/s | CPU ms per 1,000 events | p50 ms | p99 ms", end=" ")
    print("| MB | B/event to disk |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        pace = f"{row.requests_per_second:,.0f} | {row.requests_per_second * row.events:,.0f}"
        times = f"{row.cpu_ms_per_1000_events:.2f} | {row.p50_ms:.1f} | {row.p99_ms:.1f}"
        room = f"{row.resident_mb:.0f} | {row.disk_bytes_per_event:.0f}"
        print(f"| {row.server} | {row.events} | {pace} | {times} | {room} |")
    by_name = {(row.server, row.events): row for row in rows}
    for row in rows:
        if row.server != "relay":
            continue
        for other in ("nginx proxy", "bare aiohttp"):
            if (beside := by_name.get((other, row.events))) is not None:
                cpu = row.cpu_ms_per_1000_events / beside.cpu_ms_per_1000_events
                pace = row.requests_per_second / beside.requests_per_second
                print(f"relay / {other} at {row.events}: CPU {cpu:.2f}, requests/s {pace:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100])
    given = parser.parse_args()
    rows = []
    for events in given.sizes:
        runs: dict[str, list[Row]] = {name: [] for name in servers()}
        for _ in range(given.runs):  # in turn, so that a machine that changes its pace changes it for all
            for name, found in runs.items():
                found.append(measure(name, events, given.seconds, given.connections))
        rows += [median_row(found) for found in runs.values()]
    show(rows)
    paced = [pace(given.seconds) for _ in range(given.runs)]
    p50, p99 = (statistics.median(times) for times in zip(*paced, strict=True))
    print(f"500 requests/s of 10 events: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    for size in (4_096, 65_536):
        rates = [(our_disk(size, 400), bare_disk(size, 400)) for _ in range(given.runs)]
        share = statistics.median(ours / bare for ours, bare in rates)
        took = statistics.median(1e3 / bare for _, bare in rates)
        print(f"commit of {size:,} bytes: {share:.2f} of a bare append and fdatasync, which takes {took:.2f} ms")


if __name__ == "__main__":
    main()
