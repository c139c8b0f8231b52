"""A front door for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from listener.house import open_house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from listener.house import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened
