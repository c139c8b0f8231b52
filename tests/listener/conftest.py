"""A front door for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from listener.house import open_house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from listener.house import House


@pytest.fixture(params=[True, False], ids=["short way", "general way"])
def short_way(request: pytest.FixtureRequest) -> bool:
    """Both ways a request can take; who asks for this runs once for each."""
    return bool(request.param)


@pytest.fixture
async def house(tmp_path: Path, short_way: bool) -> AsyncIterator[House]:  # noqa: FBT001 - a fixture
    async with open_house(tmp_path, short_way=short_way) as opened:
        yield opened
