"""The demo, run as a newcomer runs it: what it shows is true, and it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon.harness import envelope, make_event, post, wait_until

from relay.commands import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = [sys.executable, "-m", "relay", "demo"]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}


def processes_in(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def run_demo(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [*DEMO, "--no-wait", *options], env=environment(folder), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []
    return done.stdout


def test_the_demo_shows_the_event_accepted_on_disk_without_what_is_private_and_delivered(tmp_path: Path) -> None:
    shown = run_demo(tmp_path)
    assert re.search(r'accepted +202 \{"success": ?true\} in [\d.]+ ms', shown)
    assert re.search(r"on disk +1 event queued .*; its bytes lie in \S+", shown)
    assert "taken out before the disk" in shown
    assert shown.index("accepted") < shown.index("on disk") < shown.index("delivered")
    assert '"eventName":"add_to_cart"' in shown
    assert reference.PRIVATE_VALUE not in shown
    assert "bug" not in shown


def test_the_rehearsed_outage_ends_with_the_right_count(tmp_path: Path) -> None:
    shown = run_demo(tmp_path, "--outage")
    assert "500 events queued" in shown
    assert "kill -9" in shown
    assert "500 events recovered from disk" in shown
    assert "500 accepted, 500 delivered, 0 lost, 0 delivered twice" in shown


@pytest.fixture
def waiting_demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    out = tmp_path / "out"
    folder = tmp_path / "tmp"
    folder.mkdir()
    with out.open("wb") as file:
        demo = subprocess.Popen(DEMO, env=environment(folder), stdout=file, stderr=file)
    try:
        wait_until("the demo waits for Ctrl-C", lambda: b"Ctrl-C ends" in out.read_bytes() or demo.poll() is not None)
        yield demo, out
    finally:
        demo.terminate()
        demo.wait(20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_stays_up_until_a_signal_and_tidies_up(
    number: signal.Signals, waiting_demo: tuple[subprocess.Popen[bytes], Path]
) -> None:
    demo, out = waiting_demo
    shown = out.read_text()
    assert demo.poll() is None, shown
    page = re.search(r"status page +(http://\S+)", shown)
    curl = re.search(r"curl -i (http://\S+) -H 'statsig-api-key: (\S+)' -d '(.+)'", shown)
    assert page
    assert curl
    connection = http.client.HTTPConnection(page[1].removeprefix("http://").rstrip("/"), timeout=5)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()
    event = make_event("mine", 1)
    assert post(curl[1], envelope([event]), {"statsig-api-key": curl[2]}).accepted
    assert post(curl[1], curl[3].encode(), {"statsig-api-key": curl[2]}).accepted
    wait_until("the event is shown as delivered", lambda: event.decode() in out.read_text())
    demo.send_signal(number)
    assert demo.wait(20) == 0
    assert "tidied up" in out.read_text()
    folder = out.parent / "tmp"
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_the_reference_call_has_every_documented_field() -> None:
    body = json.loads(reference.body(1_790_000_000_000, "v"))
    event = body["events"][0]
    assert set(event) == {
        *("eventName", "value", "time", "user", "metadata", "secondaryExposures", "statsigMetadata"),
    }
    assert set(event["secondaryExposures"][0]) == {"gate", "gateValue", "ruleID"}
    assert set(event["statsigMetadata"]) == {"sdkType", "sdkVersion", "exposureLoggingDisabled"}
    for user in (body["user"], event["user"]):
        assert set(user) == {
            *("userID", "email", "ip", "userAgent", "country", "locale", "appVersion", "custom"),
            *("privateAttributes", "customIDs", "statsigEnvironment"),
        }
    assert set(reference.headers(1)) == {"statsig-api-key", "STATSIG-CLIENT-TIME", "Content-Type"}
