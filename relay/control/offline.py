"""Carries a request out where no relay runs: takes the folder's lock, opens the queue, closes it again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from relay.control.verbs import NoDelivery, Verbs
from relay.spool.folder import hold
from relay.spool.spool import DiskSpool
from relay.spool.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from relay.control.protocol import Done, LaneList, Progress, Refused, Request


class Bounds(msgspec.Struct, frozen=True):
    """The operator's bounds, which hold without a relay too."""

    bytes_max: int
    lanes_max: int
    dead_letter_bytes_max: int


def carry_out(
    directory: Path, request: Request, progress: Callable[[Progress], None], *, bounds: Bounds
) -> Done | LaneList | Refused:
    """Do it. Raises SpoolLocked where somebody holds the folder after all, and other SpoolErrors."""
    return asyncio.run(_carry_out(directory, request, progress, bounds))


async def _carry_out(
    directory: Path, request: Request, progress: Callable[[Progress], None], bounds: Bounds
) -> Done | LaneList | Refused:
    folder = await asyncio.to_thread(hold, directory)
    try:
        store = await asyncio.to_thread(Store, folder.path, bytes_max=bounds.bytes_max)
        spool = DiskSpool(
            folder,
            store,
            chunk_events_max=1,
            chunk_bytes_max=1,
            disk_free_bytes_min=0,
            lanes_max=bounds.lanes_max,
            dead_letter_bytes_max=bounds.dead_letter_bytes_max,
            now_ms=_now_ms,
            committed=lambda *_: None,
            failed=lambda _: None,
        )
        await spool.open()
        try:
            await spool.recovered()
            verbs = Verbs(spool, delivery=NoDelivery(), standings=dict, now_ms=_now_ms)
            return await verbs.run(request, progress)
        finally:
            await spool.close()
    finally:
        folder.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
