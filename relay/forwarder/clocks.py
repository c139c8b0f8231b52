"""The time and the chance that the forwarder goes by, given from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Clocks(msgspec.Struct, frozen=True):
    """Waits and retries go by `monotonic`, the event loop's; what people and upstream read goes by `wall`."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]
    """Unix seconds."""
    random: Callable[[], float]
    """Gives [0, 1)."""
