"""The SDKs for Node, pointed at the relay by their own options: each event arrives once, its bytes unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clients.exactly_once import check_exactly_once
from clients.specs import specs_server
from clients.tap import Tap
from daemon.harness import CountingUpstream, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable

NODE = Path(__file__).parent / "node"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="no Node here: run tests/clients/prepare.sh"),
    pytest.mark.skipif(
        not (NODE / "node_modules").is_dir(), reason="no SDKs from npm here: run tests/clients/prepare.sh"
    ),
]

SDKS = sorted(file.stem for file in (NODE / "sdks").glob("*.mjs"))
NO_HALVES = {"statsig-node-core"}
"""SDKs that mend half surrogate pairs; the others send them as they are."""
EXPOSURES = {"statsig::gate_exposure": 1, "statsig::config_exposure": 1, "statsig::layer_exposure": 1}


def test_all_seven_sdks_are_driven() -> None:
    assert len(SDKS) >= 8, "the eighth is js-client with its bodies compressed"


@pytest.mark.parametrize("sdk", SDKS)
def test_every_event_of_a_node_sdk_arrives_exactly_once_and_unchanged(
    sdk: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    with (
        specs_server() as specs_port,
        CountingUpstream() as upstream,
        running(Daemon(tmp_path, upstream.url)) as daemon,
        Tap(daemon.port) as tap,
    ):
        command = ["node", str(NODE / "drive.mjs"), sdk, str(tap.port), str(specs_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        logged = json.loads(done.stdout.splitlines()[-1])
        events = check_exactly_once(sdk, logged, tap=tap, daemon=daemon, upstream=upstream, figure=figure)
    names = Counter(event["eventName"] for event in events)
    assert {name: names[name] for name in EXPOSURES} == EXPOSURES
    arrived = b"".join(upstream.events)
    assert b"never-to-be-sent" not in arrived
    assert (b"\\ud83d" in arrived) == (sdk not in NO_HALVES), "whether half surrogate pairs were sent"
    keys = {delivery.received.header("statsig-api-key") for delivery in upstream.accepted}
    assert keys <= {"secret-driver", "client-driver"}
