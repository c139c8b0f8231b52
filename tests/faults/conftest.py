"""What the fault tests share: a disk that fails at a word, and the matrix that the end of the run prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults.injector import FaultyDisk, build

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.rig import Row

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(HERE / "shim.c", tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(HERE.parent / "crash" / "recorder.c", tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def faulty(shim: Path, tmp_path: Path) -> FaultyDisk:
    """Give the disk below `tmp_path / "queue"`."""
    return FaultyDisk(shim, tmp_path / "queue", tmp_path / "control")


@pytest.fixture
def tell(figure: Callable[[str], None]) -> Callable[[Row], None]:
    """Add a row to the matrix of faults."""
    return lambda row: figure(str(row))
