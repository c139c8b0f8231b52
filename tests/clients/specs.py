"""A stand-in for what server SDKs fetch at their start: one gate, one config and one layer, the same for every user."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def _spec(name: str, kind: str, entity: str, default: object) -> dict[str, object]:
    return {
        "name": name,
        "type": kind,
        "salt": "salt",
        "defaultValue": default,
        "enabled": True,
        "idType": "userID",
        "entity": entity,
        "rules": [],
    }


SPECS: dict[str, Any] = {
    "has_updates": True,
    "time": 1_700_000_000_000,
    "feature_gates": [_spec("a_gate", "feature_gate", "feature_gate", default=False)],
    "dynamic_configs": [_spec("a_config", "dynamic_config", "dynamic_config", {"colour": "red"})],
    "layer_configs": [_spec("a_layer", "dynamic_config", "layer", {"size": 3})],
    "layers": {},
    "experiments": {},
    "id_lists": {},
    "diagnostics": {},
}

SPEC_LISTS = ("feature_gates", "dynamic_configs", "layer_configs")
SPECS_BY_NAME = SPECS | {kind: {spec["name"]: spec for spec in SPECS[kind]} for kind in SPEC_LISTS}
"""The same as the SDKs with a Rust core want them."""


class _SpecsServer(BaseHTTPRequestHandler):
    """Answers whatever an SDK asks for at its start."""

    def do_GET(self) -> None:
        specs = SPECS_BY_NAME if "supports_proto" in self.path else SPECS
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
    """Serve them on the port that is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SpecsServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
