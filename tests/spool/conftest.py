"""One folder on a real disk for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from spool.disk import SpoolOnDisk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def disk(tmp_path: Path) -> SpoolOnDisk:
    return SpoolOnDisk(tmp_path)
