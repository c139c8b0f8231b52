"""The unit under a real systemd, booted in a container of this machine's own /usr: ready, fed, restarted, stopped.

systemd-nspawn --volatile: a fresh, empty root in memory, /usr from the machine, a loopback of its own
    ├── event-relay.socket, event-relay.service    as they are in deploy/
    └── proof.service                              runs PROOF below, then ends the container
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.root]

BOOT_SECONDS_MAX = 90

PROOF = """
import json, subprocess, sys, threading, time, traceback
from http.client import HTTPConnection

KEY = {"statsig-api-key": "secret-k"}

def systemctl(*words):
    return subprocess.run(["systemctl", *words], capture_output=True, text=True).stdout.strip()

def show(name):
    return systemctl("show", "--property=" + name, "--value", "event-relay.service")

def post(seconds=20):
    connection = HTTPConnection("127.0.0.1", 9463, timeout=seconds)
    connection.request("POST", "/v1/log_event", b'{"events": [{"eventName": "hello"}]}', KEY)
    status = connection.getresponse().status
    connection.close()
    return status

def admin(path):
    connection = HTTPConnection("127.0.0.1", 9464, timeout=10)
    connection.request("GET", path)
    return connection.getresponse().read().decode()

def metric(name):
    lines = admin("/metrics").splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"event_relay_{name} "))

found = {}
try:
    found["socket"] = systemctl("is-active", "event-relay.socket")
    found["first"] = post()                      # the socket alone starts the service
    found["state"] = show("ActiveState")
    found["status"] = show("StatusText")
    found["user"] = show("User")
    pid = show("MainPID")
    found["pid"] = pid
    uid = [line.split()[1] for line in open(f"/proc/{pid}/status") if line.startswith("Uid:")][0]
    found["uid"] = int(uid)
    before = metric("queue_events")
    codes, over = [], threading.Event()
    def app():
        while not over.is_set():
            try:
                codes.append(post())
            except Exception as error:
                codes.append(repr(error))
            time.sleep(0.05)
    thread = threading.Thread(target=app)
    thread.start()
    time.sleep(1)
    systemctl("restart", "event-relay.service")
    time.sleep(1)
    over.set()
    thread.join()
    found["codes"] = sorted(set(map(str, codes)))
    found["posts"] = len(codes)
    found["restarted"] = show("MainPID") != pid
    found["events"] = metric("queue_events")
    found["expected"] = before + sum(code == 202 for code in codes)
    found["recovered"] = metric("queue_recovered_events_total")
    time.sleep(9)                                # twice over the hurried watchdog's patience
    found["restarts"] = int(show("NRestarts"))
    began = time.monotonic()
    systemctl("stop", "event-relay.socket", "event-relay.service")
    found["stop_seconds"] = time.monotonic() - began
    found["result"] = show("Result")
except Exception:
    found["error"] = traceback.format_exc()
found["journal"] = subprocess.run(
    ["journalctl", "--no-pager", "-o", "cat", "-u", "event-relay.service"], capture_output=True, text=True
).stdout[-4000:]
open("/proof/found.json", "w").write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(deploy: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Boot, let PROOF run inside, and give what it saw."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    nspawn = shutil.which("systemd-nspawn")
    if nspawn is None:
        pytest.skip("systemd-nspawn is not installed (Debian package systemd-container)")
    folder = tmp_path_factory.mktemp("boot")
    _write_machine(deploy, folder)
    words = [
        nspawn, "--directory=/", "--volatile=yes", "--private-network", "--register=no", "--keep-unit", "--quiet",
        "--console=pipe", f"--bind={folder}/proof:/proof",
        *(f"--bind-ro={source}:{target}" for source, target in _mounts(root, folder)),
        "--boot", "--", "--unit=proof.target", "systemd.firstboot=off",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=BOOT_SECONDS_MAX, check=False
        )
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        said = f"no end within {BOOT_SECONDS_MAX} s: {(late.stdout or b'')[-2000:]!r}"
    told = folder / "proof" / "found.json"
    assert told.exists() or not (folder / "proof" / "booted").exists(), said[-3000:]
    if not told.exists():
        pytest.skip(f"systemd does not boot in a container here: {said[-1500:]}")
    seen: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    assert "error" not in seen, seen["error"] + seen["journal"]
    return seen


def _mounts(root: Path, folder: Path) -> list[tuple[str, str]]:
    """Python, its packages and the relay, all outside the home folders that the unit must not see."""
    return [
        (sys.base_prefix, "/opt/python"),
        (sysconfig.get_path("purelib"), "/opt/packages"),
        (str(root / "relay"), "/opt/source/relay"),
        (f"{folder}/opt/event-relay", "/opt/event-relay"),
        (f"{folder}/etc/event-relay", "/etc/event-relay"),
        (f"{folder}/etc/systemd/system", "/etc/systemd/system"),
    ]


def _write_machine(deploy: Path, folder: Path) -> None:
    units = folder / "etc/systemd/system"
    config = folder / "etc/event-relay"
    program = folder / "opt/event-relay/bin/relay"
    for made in (units, config, program.parent, folder / "proof"):
        made.mkdir(parents=True)
        made.chmod(0o755)
    for name in ("event-relay.service", "event-relay.socket"):
        shutil.copy(deploy / "systemd" / name, units)
    shutil.copy(deploy / "systemd" / "config.toml", config)
    hurried = units / "event-relay.service.d"
    hurried.mkdir()
    (hurried / "watchdog.conf").write_text("[Service]\nWatchdogSec=4\n", encoding="utf-8")
    python = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # Its own library first, or the machine's Python of the same version would lend it another one.
    paths = "LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/source:/opt/packages PYTHONDONTWRITEBYTECODE=1"
    program.write_text(f'#!/bin/sh\n{paths} exec {python} -m relay "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (folder / "proof" / "proof.py").write_text(PROOF, encoding="utf-8")
    (units / "proof.target").write_text("[Unit]\nRequires=basic.target proof.service\n", encoding="utf-8")
    (units / "proof.service").write_text(
        textwrap.dedent(f"""\
            [Unit]
            Wants=event-relay.socket
            After=basic.target event-relay.socket
            SuccessAction=exit-force
            FailureAction=exit-force
            [Service]
            Type=oneshot
            Environment=LD_LIBRARY_PATH=/opt/python/lib
            ExecStartPre=/usr/bin/touch /proof/booted
            ExecStart={python} /proof/proof.py
            """),
        encoding="utf-8",
    )


def test_a_first_event_starts_the_service_through_its_socket(found: dict[str, Any]) -> None:
    assert found["socket"] == "active"
    assert found["first"] == 202
    assert found["state"] == "active"


def test_it_runs_as_a_user_made_for_it_alone(found: dict[str, Any]) -> None:
    assert 61184 <= found["uid"] <= 65519  # systemd's range for dynamic users


def test_a_restart_refuses_no_connection_and_loses_no_event(found: dict[str, Any]) -> None:
    assert found["restarted"]
    assert found["codes"] == ["202"]
    assert found["posts"] > 10
    assert found["events"] == found["expected"]
    assert found["recovered"] > 0


def test_the_watchdog_is_patted_and_a_stop_is_clean(found: dict[str, Any]) -> None:
    assert found["restarts"] == 0
    assert found["result"] == "success"
    assert found["stop_seconds"] < 30
