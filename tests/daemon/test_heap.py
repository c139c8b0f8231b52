"""Memory that was freed is there for the next requests, and what is large goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from relay.app import heap

BUSY_MOMENTS = """
import resource, sys
from relay.app import heap
if sys.argv[1] == "kept":
    assert heap.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def moment():
    bodies = [bytes(30_000) for _ in range(64)]
    return b",".join(bodies[:20])
moment()
before = faults()
for _ in range(100):
    moment()
print(faults() - before)
"""
LARGE_ONE = """
from relay.app import heap
heap.keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
large = b"x" * (heap.HEAP_BYTES_MAX + 1)
held = resident()
wall = bytes(1000)
del large
print(held - before, resident() - before)
"""


def numbers_of(script: str, *arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")


@glibc_only
def test_a_busy_moment_finds_the_memory_of_the_last_one_there() -> None:
    (kept,), (given_back,) = numbers_of(BUSY_MOMENTS, "kept"), numbers_of(BUSY_MOMENTS, "as it comes")
    assert given_back > 10_000, "the C library kept it by itself: this test shows nothing"
    assert kept < 1000


@glibc_only
def test_a_large_piece_goes_back_at_once() -> None:
    held, left = numbers_of(LARGE_ONE)
    assert held >= heap.HEAP_BYTES_MAX
    assert left < 1024 * 1024
