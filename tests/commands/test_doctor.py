"""`relay doctor`: each thing that can be wrong with a set-up is found, with its cure, and no event is sent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from commands.tools import Said, call, lay
from daemon.harness import free_port
from spool.disk import record

from relay.commands.checkup.folder import judge_file_system, judge_sync
from relay.spool.folder import hold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
MEMORY = "/dev/shm"  # noqa: S108 – nothing is written there


class Upstream:
    """A server whose clock and certificate a test sets; remembers what it was asked."""

    def __init__(self) -> None:
        upstream = self
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.clock_ahead_seconds: float | None = 0.0

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                upstream.asked.append((self.command, self.path, dict(self.headers)))
                self.send_response_only(404)
                if upstream.clock_ahead_seconds is not None:
                    self.send_header("Date", formatdate(time.time() + upstream.clock_ahead_seconds, usegmt=True))
                self.end_headers()

            def log_message(self, *_):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/log_event"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def speak_tls(self, certificate: Path, wants: Path | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if wants is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(wants)
        context.load_cert_chain(certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = self.url.replace("http://127.0.0.1", "https://localhost")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    found.thread.start()
    yield found
    found.server.shutdown()
    found.thread.join()
    found.server.server_close()


def write(folder: Path, url: str, upstream: str = "", queue: str = "") -> Path:
    file = folder / "relay.toml"
    file.write_text(
        f"[queue]\ndirectory = {json.dumps(str(folder / 'queue'))}\n{queue}\n"
        f"[upstream]\nurl = {json.dumps(url)}\n{upstream}\n"
    )
    return file


def found(said: Said, about: str) -> dict:
    """The one finding about something."""
    (one,) = [finding for finding in said.lines if finding["about"] == about]
    assert one["level"] == "ok" or one["cure"], one
    return one


def test_a_sound_set_up_is_well_and_nothing_is_made_nor_posted(tmp_path: Path, upstream: Upstream):
    config = write(tmp_path, upstream.url)
    said = call(config, "doctor", "--json")
    assert {finding["level"] for finding in said.lines if finding["about"] != "TLS"} == {"ok"}
    ((method, path, headers),) = upstream.asked
    assert (method, path) == ("HEAD", "/")
    assert not [name for name in headers if "statsig" in name.lower()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["relay.toml"]
    assert "to think about" in call(config, "doctor").out


def test_it_looks_at_a_queue_in_use_without_harm(tmp_path: Path, upstream: Upstream):
    lay(tmp_path, record())
    config = write(tmp_path, upstream.url)
    before = {path.name for path in (tmp_path / "queue" / "spool").iterdir()}
    assert "its owner's alone" in found(call(config, "doctor", "--json"), "folder")["text"]
    assert {path.name for path in (tmp_path / "queue" / "spool").iterdir()} == before
    (tmp_path / "queue" / "spool" / "queue.db").chmod(0o644)
    wrong = found(call(config, "doctor", "--json"), "folder")
    assert (wrong["level"], "chmod" in wrong["cure"]) == ("warn", True)


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.0, "ok"), (-2.0, "ok"), (60.0, "warn"), (-60.0, "warn"), (4000.0, "fail"), (None, "warn")]
)
def test_a_clock_that_differs_is_found(tmp_path: Path, upstream: Upstream, ahead: float | None, level: str):
    upstream.clock_ahead_seconds = ahead
    said = call(write(tmp_path, upstream.url), "doctor", "--json", code=int(level == "fail"))
    assert found(said, "clock")["level"] == level
    if ahead:
        assert ("behind" if ahead > 0 else "ahead") in found(said, "clock")["text"] or level == "ok"


def test_a_name_without_an_address_a_closed_port_and_a_port_that_is_no_http_are_told_apart(tmp_path: Path):
    said = call(write(tmp_path, "https://relay-upstream.invalid/v1/log_event"), "doctor", "--json", code=1)
    assert found(said, "DNS")["level"] == "fail"
    assert not [finding for finding in said.lines if finding["about"] == "TCP"], "what stands on it is not tried"
    said = call(write(tmp_path, f"http://127.0.0.1:{free_port()}/"), "doctor", "--json", code=1)
    assert found(said, "TCP")["level"] == "fail"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        config = write(tmp_path, url, upstream="connect_seconds_max = 0.3")
        assert found(call(config, "doctor", "--json", code=1), "HTTP")["level"] == "fail"
        config = write(tmp_path, url.replace("http", "https"), upstream="connect_seconds_max = 0.3")
        assert found(call(config, "doctor", "--json", code=1), "TLS")["level"] == "fail"


def certify(folder: Path, days: int) -> Path:
    """Make a certificate of localhost, with its key in the same file."""
    pem = folder / f"{days}.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = ["openssl", *words.split(), "-days", str(days), "-keyout", str(pem) + ".key", "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    with pem.open("a") as both:
        both.write((pem.parent / (pem.name + ".key")).read_text())
    return pem


@needs_openssl
def test_the_client_s_certificate_is_shown_to_an_upstream_that_wants_one(tmp_path: Path, upstream: Upstream):
    pem = certify(tmp_path, days=90)
    upstream.speak_tls(pem, wants=pem)
    trusting = f"ca_file = {json.dumps(str(pem))}\n"
    ours = "".join(f"{key} = {json.dumps(str(pem))}\n" for key in ("client_cert_file", "client_key_file"))
    assert found(call(write(tmp_path, upstream.url, trusting), "doctor", "--json", code=1), "HTTP")["level"] == "fail"
    assert found(call(write(tmp_path, upstream.url, trusting + ours), "doctor", "--json"), "clock")["level"] == "ok"


@needs_openssl
def test_certificates_that_are_not_trusted_good_or_about_to_end_are_told_apart(tmp_path: Path, upstream: Upstream):
    pem = certify(tmp_path, days=3)
    upstream.speak_tls(pem)
    config = write(tmp_path, upstream.url)
    wrong = found(call(config, "doctor", "--json", code=1), "TLS")
    assert (wrong["level"], "ca_file" in wrong["cure"]) == ("fail", True)
    config = write(tmp_path, upstream.url, upstream=f"ca_file = {json.dumps(str(pem))}")
    soon = found(call(config, "doctor", "--json"), "TLS")
    assert (soon["level"], "ends in" in soon["text"]) == ("warn", True)


def test_a_full_disk_to_come_and_one_that_is_full_are_told_apart(tmp_path: Path, upstream: Upstream):
    free = shutil.disk_usage(tmp_path).free
    config = write(tmp_path, upstream.url, queue=f"bytes_max = {free * 2}")
    assert found(call(config, "doctor", "--json"), "space")["level"] == "warn"
    config = write(tmp_path, upstream.url, queue="disk_free_bytes_min = '1TiB'")
    assert found(call(config, "doctor", "--json", code=1), "space")["level"] == "fail"


def test_what_must_stay_free_and_what_the_queue_has_already_count_towards_a_full_disk(
    tmp_path: Path, upstream: Upstream
):
    lay(tmp_path, record())
    free = shutil.disk_usage(tmp_path).free
    roomy = f"bytes_max = {free // 2}\n"
    space = found(call(write(tmp_path, upstream.url, queue=roomy), "doctor", "--json"), "space")
    assert space["level"] == "ok"
    assert "the queue has 0 B" not in space["text"]
    config = write(tmp_path, upstream.url, queue=roomy + f"disk_free_bytes_min = {free * 3 // 4}")
    assert found(call(config, "doctor", "--json"), "space")["level"] == "warn"


@pytest.mark.parametrize(("kind", "level"), [("ext4", "ok"), ("nfs4", "fail"), ("tmpfs", "warn"), ("", "ok")])
def test_a_file_system_is_judged_by_what_it_promises(tmp_path: Path, kind: str, level: str):
    finding = judge_file_system(kind, tmp_path)
    assert (finding.level, bool(finding.cure)) == (level, level != "ok")


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([0.001, 0.002, 0.3], "ok"), ([0.2, 0.2, 0.2], "warn"), ([0.001, 0.001, 6.0], "fail"), ([5.5] * 3, "fail")],
)
def test_a_disk_is_judged_by_its_usual_and_by_its_worst_sync(seconds: list[float], level: str):
    finding = judge_sync(seconds)
    assert (finding.level, bool(finding.cure)) == (level, level != "ok")


def test_key_files_that_are_missing_empty_or_everybody_s_are_told_apart(tmp_path: Path, upstream: Upstream):
    keys = tmp_path / "keys"
    config = write(tmp_path, upstream.url, upstream=f"api_key_file = {json.dumps(str(keys))}")

    def finding(code: int = 0) -> dict:
        return found(call(config, "doctor", "--json", code=code), "upstream.api_key_file")

    assert "cannot be read" in finding(1)["text"]
    keys.write_text("# none yet\n")
    keys.chmod(0o600)
    assert "holds no key" in finding(1)["text"]
    keys.write_text("secret-key\n")
    good = finding()
    assert (good["level"], "secret-key" in json.dumps(good)) == ("ok", False)
    keys.chmod(0o644)
    assert finding()["level"] == "warn"


@pytest.mark.parametrize("setting", ["listen.api_keys_allowed_file", "upstream.client_key_file"])
def test_every_secret_that_everybody_may_read_is_found(tmp_path: Path, upstream: Upstream, setting: str):
    secret = tmp_path / "secret"
    secret.write_text("secret-key\n")
    section, key = setting.split(".")
    lines = [f"{key} = {json.dumps(str(secret))}"]
    if section == "upstream":
        lines.append(f"client_cert_file = {json.dumps(str(secret))}")
    config = write(tmp_path, upstream.url)
    config.write_text(config.read_text() + f"\n[{section}]\n" * (section != "upstream") + "\n".join(lines) + "\n")
    for mode, level in ((0o644, "warn"), (0o600, "ok")):
        secret.chmod(mode)
        assert found(call(config, "doctor", "--json"), setting)["level"] == level


def test_the_relay_that_holds_the_queue_is_named(tmp_path: Path, upstream: Upstream):
    config = write(tmp_path, upstream.url)
    assert "no relay runs" in found(call(config, "doctor", "--json"), "lock")["text"]
    folder = hold(tmp_path / "queue")
    try:
        assert f"held by process {os.getpid()}" in found(call(config, "doctor", "--json"), "lock")["text"]
    finally:
        folder.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, upstream: Upstream):
    (tmp_path / "queue").mkdir(mode=0o500)
    assert found(call(write(tmp_path, upstream.url), "doctor", "--json", code=1), "folder")["level"] == "fail"


@pytest.mark.skipif(not os.path.ismount(MEMORY), reason="needs a file system in memory")
def test_a_folder_in_memory_is_announced(tmp_path: Path, upstream: Upstream):
    config = write(tmp_path, upstream.url)
    config.write_text(config.read_text().replace(str(tmp_path / "queue"), f"{MEMORY}/relay-doctor-test"))
    assert found(call(config, "doctor", "--json"), "file system")["level"] == "warn"


def test_the_way_through_a_proxy_is_what_is_looked_at(tmp_path: Path, upstream: Upstream):
    proxy = upstream.url.removesuffix("/v1/log_event")
    config = write(tmp_path, "http://statsig.invalid/v1/log_event", upstream=f"proxy = {json.dumps(proxy)}")
    said = call(config, "doctor", "--json")
    assert "the proxy" in found(said, "TCP")["text"]
    ((_, path, headers),) = upstream.asked
    assert (path, headers["Host"]) == ("http://statsig.invalid/", "statsig.invalid")


def test_wrong_settings_are_said_as_everywhere(tmp_path: Path):
    config = write(tmp_path, "http://127.0.0.1/", queue="bytes_mx = 1")
    assert "bytes_max" in call(config, "doctor", code=2).err
