"""Whether an event costs the same however many are queued: CPU for taking more in, and for draining, by depth.

    .venv/bin/python tests/bench/flat.py                          1,000 to 1,000,000 events, about a minute
    .venv/bin/python tests/bench/flat.py --depths 10000000        needs 1 GB of disk

Upstream is away while the queue is filled, so everything waits on the disk. Then so many more are taken in, and then
upstream is there and all is drained. The relay has one CPU, load and upstream the other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import HERE, cpu_seconds, free_port, load, relay, resident_mb, running, wait_delivered

EVENTS = 100
"""A request's."""
PROBE_EVENTS = 100_000
"""Taken in at each depth while the CPU is read."""
BAR = 40


@dataclass(frozen=True)
class Point:
    """What an event costs at one depth."""

    depth: int
    taking_in_ms: float
    draining_ms: float
    resident_mb: float


def measure(depth: int) -> Point:
    port, upstream = free_port(), free_port()
    counting = [sys.executable, str(HERE / "load.py"), "count", "--port", str(upstream)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        argv = relay(Path(folder), port, upstream)
        with running(argv, port, 0) as server:
            load(port, EVENTS, requests=depth // EVENTS, connections=16)
            before = cpu_seconds(server.pid)
            load(port, EVENTS, requests=PROBE_EVENTS // EVENTS, connections=16)
            full = cpu_seconds(server.pid)
            with running(counting, upstream, 1):
                wait_delivered(upstream, depth + PROBE_EVENTS)
                drained = cpu_seconds(server.pid)
            taking_in = (full - before) / PROBE_EVENTS * 1e6
            draining = (drained - full) / (depth + PROBE_EVENTS) * 1e6
            return Point(depth, taking_in, draining, resident_mb(server.pid))


def bar(value: float, most: float) -> str:
    return "█" * max(1, round(BAR * value / most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    points = [measure(depth) for depth in parser.parse_args().depths]
    print("| events queued | CPU ms per 1,000 taken in | CPU ms per 1,000 drained | peak MB |\n|---|---|---|---|")
    for point in points:
        costs = f"{point.taking_in_ms:.2f} | {point.draining_ms:.2f}"
        print(f"| {point.depth:,} | {costs} | {point.resident_mb:.0f} |")
    for name in ("taking_in_ms", "draining_ms"):
        values = [getattr(point, name) for point in points]
        print(f"\n{name}")
        for point, value in zip(points, values, strict=True):
            print(f"{point.depth:>12,} {bar(value, max(values))} {value:.2f}")


if __name__ == "__main__":
    main()
