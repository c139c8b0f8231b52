"""What the whole relay writes at its most talkative, while apps and upstream do their worst: nothing of theirs."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from daemon.harness import Daemon, post, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = "hunter2"
"""Stands in every key, user, event, header and path of a query that is sent here."""
KEY = {"statsig-api-key": f"secret-{MARK}"}
EVENT = {
    "eventName": MARK,
    "value": MARK,
    "user": {"userID": MARK, "email": f"{MARK}@example.com", "custom": {MARK: MARK}, "privateAttributes": {"a": MARK}},
    "metadata": {MARK: MARK},
}


def body(*events: object) -> bytes:
    return json.dumps({"events": events, "user": {"userID": MARK}, "statsigMetadata": {"sdkType": MARK}}).encode()


class Gossip(BaseHTTPRequestHandler):
    """An upstream that repeats what it was sent, key and all, in the answer, its reason and its headers."""

    status: ClassVar[int] = 400
    asked: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"]))
        said += str(self.headers).encode()
        self.asked.append(self.status)
        if self.status == 0:  # no HTTP at all
            self.wfile.write(said)
            self.close_connection = True
            return
        self.send_response(self.status, f"no {MARK}")
        self.send_header("Content-Length", str(len(said)))
        self.send_header("Location", f"http://{MARK}/")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def gossiping() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gossip)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/log_event"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def misbehave(daemon: Daemon) -> list[int]:
    """Send what apps get wrong, each with the mark in it; gives the statuses."""
    many: list[tuple[bytes, dict[str, Any]]] = [
        (body(EVENT, {"value": MARK}), KEY),  # the second has no name
        (f'{{"events": [{MARK}]}}'.encode(), KEY),
        (f"{MARK} is no JSON".encode(), KEY),
        (b"\x1f\x8b" + MARK.encode(), KEY),
        (body(EVENT), KEY | {"content-encoding": MARK}),
        (body(EVENT), KEY | {"origin": f"http://{MARK}"}),
        (body(EVENT), KEY | {"statsig-client-time": MARK, "x-request-id": f"secret-{MARK * 3}"}),
    ]
    statuses = [post(daemon.url, sent, headers).status for sent, headers in many]
    statuses.append(post(f"{daemon.url}?k=client-{MARK}", body(EVENT), {"cookie": MARK}).status)
    statuses.append(post(f"http://127.0.0.1:{daemon.port}/{MARK}", body(EVENT), KEY).status)
    for raw in (f"POST /v1 HTTP/1.1\r\n{MARK}\x00: {MARK}\r\n\r\n", f"{MARK}\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as connection:
            connection.sendall(raw.encode())
            connection.recv(1000)
    return statuses


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_of_an_app_or_an_upstream_reaches_the_log_at_its_most_talkative(tmp_path: Path, form: str) -> None:
    settings = {
        "log": {"level": "debug", "format": form},
        "upstream": {"compression": "none", "park_probe_seconds": 1},
        "shutdown": {"drain_seconds_max": 0},
    }
    Gossip.asked.clear()
    with gossiping() as url, running(Daemon(tmp_path, url, settings=settings)) as daemon:
        for status in (503, 302, 0, 200, 401, 400):
            Gossip.status = status
            statuses = misbehave(daemon)
            assert {202, 400} <= set(statuses), statuses
            wait_until(f"upstream answers {status}", lambda status=status: status in Gossip.asked)
        wait_until("some are dead", lambda: daemon.status().queue.dead_events > 0)
    for word in ("gate_closed", "lane_parked", "events_dead_lettered"):
        assert word in daemon.log, daemon.log
    told = [line for line in daemon.log.splitlines() if MARK in line]
    assert not told, told
