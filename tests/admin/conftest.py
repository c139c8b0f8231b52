from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from admin.scenes import SCENES, history
from aiohttp.test_utils import TestClient, TestServer

from relay.admin.server import make_admin
from relay.observe import Observer, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Operator:
    """What the admin window is given, for a test to change while it is open."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.snapshot: Snapshot = SCENES["backing off"]
        self.history = history("backing off")
        self.looks = 0
        self.wrong: dict[str, str] = {}
        self.now = 900.0

    def look(self) -> Snapshot:
        self.looks += 1
        return self.snapshot

    def live(self) -> str | None:
        return self.wrong.get("live")

    def ready(self) -> str | None:
        return self.wrong.get("ready")

    def started(self) -> str | None:
        return self.wrong.get("started")


@pytest.fixture
def operator() -> Operator:
    return Operator()


@pytest.fixture
async def admin(operator: Operator) -> AsyncIterator[TestClient]:
    """A client of the window, over a real socket."""
    app = make_admin(
        observer=operator.observer,
        source=operator.look,
        health=operator,
        hosts=("relay.example",),
        history=operator.history,
        monotonic=lambda: operator.now,
    )
    async with TestClient(TestServer(app)) as client:
        yield client
