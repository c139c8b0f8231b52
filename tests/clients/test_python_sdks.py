"""The real Python SDKs, pointed at the relay by their own options: each event arrives exactly once, as logged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clients.odd_events import odd_events
from clients.specs import specs_server
from daemon.harness import CountingUpstream, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


@pytest.mark.parametrize("driver", ["drive_statsig.py", "drive_statsig_core.py"])
def test_every_event_of_a_real_sdk_arrives_exactly_once_as_it_was_logged(
    driver: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    logged = {name: (value, metadata) for name, value, metadata in odd_events()}
    with (
        specs_server() as specs_port,
        CountingUpstream() as upstream,
        running(Daemon(tmp_path, upstream.url)) as daemon,
    ):
        command = [sys.executable, str(HERE / driver), str(daemon.port), str(specs_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        daemon.wait_drained()
    arrived = [json.loads(event) for event in upstream.events]
    counts = Counter(event["eventName"] for event in arrived)
    assert {name: counts[name] for name in logged} == dict.fromkeys(logged, 1)
    for event in arrived:
        if event["eventName"] in logged:
            value, metadata = logged[event["eventName"]]
            assert event.get("value") == value
            assert (event.get("metadata") or {}) == (metadata or {})
            assert event["user"]["userID"] == "user-1"
    assert counts["statsig::gate_exposure"] == 1
    assert all(delivery.received.header("statsig-api-key") == "secret-driver" for delivery in upstream.accepted)
    assert not any(b"private" in event for event in upstream.events)
    figure(f"{driver.removesuffix('.py')}: {len(logged)} logged, {len(logged)} arrived once, 0 twice")
