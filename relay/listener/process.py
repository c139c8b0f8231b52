"""What the front door needs of the process as a whole: descriptors, a fair share of the interpreter, memory given back.

Set once when the door opens. Each is there because of a measurement, noted beside its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import Final

import structlog

DESCRIPTORS_KEPT: Final = 192
"""For the disk, upstream, the admin port, and the 128 connections that are turned away with care: without a descriptor
for them they are reset, and a reset makes an SDK drop what it holds."""
SWITCH_SECONDS: Final = 0.001
"""How long a thread that reads big bodies may keep the interpreter from the loop; Python's own 5 ms add up, for an
answer needs it several times."""
BLOCK_BYTES_MIN: Final = 1 << 20
"""Blocks from this size on are given back to the system as soon as they are free. Left to itself the allocator raises
this to 32 MiB, and a burst of big bodies then keeps several times its memory for good."""
_M_MMAP_THRESHOLD: Final = -3  # malloc.h of glibc

_log = structlog.get_logger()


def prepare(connections_max: int) -> int:
    """Set the process up, and give how many connections it may open."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(AttributeError, OSError):  # another C library, which does without
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, BLOCK_BYTES_MIN)
    return room_for(connections_max)


def room_for(connections_max: int) -> int:
    """Give how many connections the process may open, having asked for as many descriptors as they need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections_max + DESCRIPTORS_KEPT
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections_max
    room = max(1, soft - DESCRIPTORS_KEPT)
    _log.warning("few_descriptors", connections_max=connections_max, connections=room, limit=soft)
    return room
