"""The SDKs for Python, pointed at the relay by their own options: each event arrives once, its bytes unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clients.exactly_once import check_exactly_once
from clients.odd_events import odd_events
from clients.specs import specs_server
from clients.tap import Tap
from daemon.harness import CountingUpstream, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
AS_LOGGED = {"statsig": ("odd", "plain"), "statsig-python-core": ("plain",)}
"""Events whose value and metadata the SDK sends as they were logged; the Rust core makes floats of large integers."""


@pytest.mark.parametrize(
    ("sdk", "driver"), [("statsig", "drive_statsig.py"), ("statsig-python-core", "drive_statsig_core.py")]
)
def test_every_event_of_a_python_sdk_arrives_exactly_once_and_unchanged(
    sdk: str, driver: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    logged = {name: (value, metadata) for name, value, metadata in odd_events()}
    with (
        specs_server() as specs_port,
        CountingUpstream() as upstream,
        running(Daemon(tmp_path, upstream.url)) as daemon,
        Tap(daemon.port) as tap,
    ):
        command = [sys.executable, str(HERE / driver), str(tap.port), str(specs_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        events = check_exactly_once(sdk, list(logged), tap=tap, daemon=daemon, upstream=upstream, figure=figure)
    arrived = {event["eventName"]: event for event in events}
    for name in filter(lambda name: name.startswith(AS_LOGGED[sdk]), logged):
        value, metadata = logged[name]
        sent = arrived[name].get("value")
        assert sent == value or repr(sent) == repr(value)  # no NaN equals another
        assert (arrived[name].get("metadata") or {}) == (metadata or {})
        assert arrived[name]["user"]["userID"] == "user-1"
    assert "statsig::gate_exposure" in arrived
    assert all(delivery.received.header("statsig-api-key") == "secret-driver" for delivery in upstream.accepted)
    assert not any(b"private" in event for event in upstream.events)
