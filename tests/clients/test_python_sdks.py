"""The real Python SDKs, pointed at the relay by their own options: each event arrives exactly once, as logged."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clients.odd_events import odd_events
from daemon.harness import CountingUpstream, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
GATE = {
    "name": "a_gate",
    "type": "feature_gate",
    "salt": "salt",
    "defaultValue": False,
    "enabled": True,
    "idType": "userID",
    "entity": "feature_gate",
    "rules": [],
}
SPECS = {
    "has_updates": True,
    "time": 1_700_000_000_000,
    "feature_gates": [GATE],
    "dynamic_configs": [],
    "layer_configs": [],
    "layers": {},
    "experiments": {},
    "id_lists": {},
    "diagnostics": {},
}


MAPS = {"dynamic_configs": {}, "layer_configs": {}}
"""The Rust core wants maps by name where the older SDK wants lists."""


class SpecsServer(BaseHTTPRequestHandler):
    """Answers whatever an SDK asks for at its start."""

    def do_GET(self) -> None:
        specs = SPECS | {"feature_gates": {"a_gate": GATE}, **MAPS} if "core" in self.path else SPECS
        body = json.dumps({} if "id_list" in self.path else specs).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


@contextmanager
def specs_server() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SpecsServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
