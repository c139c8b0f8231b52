"""The unit and its socket: accepted by systemd, hardened, and in step with the settings beside them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from relay.config import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Tool = Callable[..., subprocess.CompletedProcess[str]]

SYSTEMD = "Debian package systemd"
EXPOSURE_MAX = 1.5


@pytest.fixture(scope="module")
def folder(deploy: Path) -> Path:
    return deploy / "systemd"


def settings(unit: Path) -> dict[str, list[str]]:
    """Every `Key=value` of a unit; a key may stand several times."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def machine(tmp_path: Path, folder: Path) -> Path:
    """A root folder with this machine's own units, ours, and a program where ours expects it."""
    own = Path("/usr/lib/systemd/system")
    if not own.is_dir():
        pytest.skip(f"no units in {own} ({SYSTEMD})")
    shutil.copytree(own, tmp_path / own.relative_to("/"), symlinks=True)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in ("event-relay.service", "event-relay.socket"):
        shutil.copy(folder / name, units)
    for program in ("opt/event-relay/bin/relay", "bin/kill"):
        stand_in = tmp_path / program
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text("#!/bin/true\n", encoding="utf-8")
        stand_in.chmod(0o755)
    return tmp_path


def verify(tool: Tool, machine: Path) -> str:
    done = tool(
        "systemd-analyze", "verify", f"--root={machine}", "event-relay.service", "event-relay.socket", needs=SYSTEMD
    )
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say_about_the_units(tool: Tool, machine: Path) -> None:
    assert verify(tool, machine) == ""


def test_systemd_has_nothing_to_say_about_the_key_as_a_credential(tool: Tool, machine: Path, folder: Path) -> None:
    drop_in = machine / "etc/systemd/system/event-relay.service.d"
    drop_in.mkdir()
    shutil.copy(folder / "api-key.conf", drop_in)
    assert verify(tool, machine) == ""


def test_systemd_speaks_up_about_a_misspelled_key_or_the_proof_is_worth_nothing(tool: Tool, machine: Path) -> None:
    unit = machine / "etc/systemd/system/event-relay.service"
    unit.write_text(unit.read_text(encoding="utf-8").replace("ProtectHome=", "ProtectHomes="), encoding="utf-8")
    assert "ProtectHomes" in verify(tool, machine)


def test_what_an_intruder_could_reach_stays_little(tool: Tool, folder: Path) -> None:
    unit = folder / "event-relay.service"
    done = tool("systemd-analyze", "security", "--offline=true", "--no-pager", unit, needs=SYSTEMD)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= EXPOSURE_MAX


def test_the_settings_load_and_a_stop_leaves_time_to_drain(folder: Path) -> None:
    config = load(folder / "config.toml", {})
    unit = settings(folder / "event-relay.service")
    # The drain may be followed by an answer's last seconds and a commit.
    after_draining = config.listen.answer_seconds_max + 5
    assert int(unit["TimeoutStopSec"][0]) >= config.shutdown.drain_seconds_max + after_draining
    assert unit["ExecStart"][0].endswith("relay run --config /etc/event-relay/config.toml")


def test_the_queue_lies_in_the_folder_that_systemd_keeps(folder: Path) -> None:
    unit = settings(folder / "event-relay.service")
    directory = load(folder / "config.toml", {}).queue.directory
    assert directory == Path("/var/lib") / unit["StateDirectory"][0]


def test_the_socket_holds_the_addresses_that_the_relay_listens_on(folder: Path) -> None:
    held = settings(folder / "event-relay.socket")["ListenStream"]
    assert held == [str(address) for address in load(folder / "config.toml", {}).listen.address]


def test_the_key_is_a_file_that_the_relay_is_told_of(folder: Path) -> None:
    drop_in = settings(folder / "api-key.conf")
    (credential,) = drop_in["LoadCredential"]
    name = credential.partition(":")[0]
    key, _, value = drop_in["Environment"][0].partition("=")
    assert value == f"%d/{name}"
    config = load(None, {key: f"/run/credentials/event-relay.service/{name}"})
    assert config.upstream.api_key_file == Path(f"/run/credentials/event-relay.service/{name}")


def test_the_watchdog_and_endless_restarts_are_on_and_a_wrong_setting_ends_them(folder: Path) -> None:
    unit = settings(folder / "event-relay.service")
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) >= 10
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["RestartPreventExitStatus"] == ["2"]
