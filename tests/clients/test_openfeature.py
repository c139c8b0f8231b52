"""The OpenFeature provider for Statsig: each evaluation's exposure arrives exactly once, its bytes unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clients.exactly_once import check_exactly_once
from clients.specs import specs_server
from clients.tap import Tap
from daemon.harness import CountingUpstream, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("statsig_openfeature_provider_python", reason="install statsig-openfeature-provider-python")

DRIVER = Path(__file__).parent / "drive_openfeature.py"


def test_every_exposure_of_the_openfeature_provider_arrives_exactly_once(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    with (
        specs_server() as specs_port,
        CountingUpstream() as upstream,
        running(Daemon(tmp_path, upstream.url)) as daemon,
        Tap(daemon.port) as tap,
    ):
        command = [sys.executable, str(DRIVER), str(tap.port), str(specs_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        evaluated = json.loads(done.stdout.splitlines()[-1])
        check_exactly_once(
            "OpenFeature", evaluated, tap=tap, daemon=daemon, upstream=upstream, figure=figure, name_of=flag_and_user
        )
    assert {delivery.received.header("statsig-api-key") for delivery in upstream.accepted} == {"secret-driver"}


def flag_and_user(event: dict[str, Any]) -> str:
    metadata = event["metadata"]
    return f"{metadata.get('gate') or metadata.get('config')} for {(event.get('user') or {}).get('userID')}"
