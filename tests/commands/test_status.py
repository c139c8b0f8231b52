from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import msgspec
import pytest
from admin.scenes import SCENES, attempt, forward, history, snapshot

from relay.admin import Report, make_report
from relay.commands import status
from relay.observe import Trend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def report(name: str) -> Report:
    past, state = history(name), SCENES[name]
    return make_report(state, past.trend(state), past.depths(state))


class FakeRelay:
    """Answers /status on a real socket with what a test sets; the report itself is the real one."""

    def __init__(self) -> None:
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                relay.paths.append(self.path)
                self.send_response(relay.code)
                self.send_header("Content-Length", str(len(relay.body)))
                self.end_headers()
                self.wfile.write(relay.body)

            def log_message(self, *_):
                """Say nothing."""

        self.paths: list[str] = []
        self.code, self.body = 200, msgspec.json.encode(report("backing off"))
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    status.configure(parser)
    return status.run(parser.parse_args(words))


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/", "http://{}/status"])
def test_it_prints_the_sentence_the_numbers_and_the_tables(relay, capsys, form):
    assert run("--url", form.format(relay.address)) == 0
    shown = capsys.readouterr().out
    view = report("backing off").view
    assert " ".join(shown.split("\n\n")[0].split()).startswith(
        "● Backing off: upstream answers 503. Events are accepted"
    )
    assert all(fact.label in shown and fact.value in shown for fact in view.facts)
    assert "8f3a21bc" in shown
    assert "answers 503" in shown
    assert relay.paths == ["/status"]


def test_it_finds_the_relay_by_its_settings(relay, capsys, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(f'admin.address = "{relay.address}"\n')
    assert run("--config", str(config)) == 0
    assert "Backing off" in capsys.readouterr().out


def test_a_relay_that_listens_everywhere_is_asked_on_loopback(relay, capsys, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(f'admin.address = "0.0.0.0:{relay.server.server_port}"\n')
    assert run("--config", str(config)) == 0
    assert "Backing off" in capsys.readouterr().out


def test_json_is_the_answer_as_it_came(relay, capsys):
    assert run("--json", "--url", relay.address) == 0
    assert capsys.readouterr().out.encode() == relay.body + b"\n"


def test_a_proxy_of_the_environment_is_not_asked(relay):
    environment = os.environ | {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "relay", "status", "--url", f"http://{relay.address}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Backing off" in done.stdout


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nothing_there_is_exit_1_with_what_to_do_next():
    port = closed_port()
    command = [sys.executable, "-m", "relay", "status", "--url", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"relay: nothing answers at 127.0.0.1:{port} (Connection refused)")
    assert "relay run" in line
    assert "--url" in line


def test_a_socket_that_is_not_there_says_so(tmp_path: Path):
    with pytest.raises(status.NoAnswer, match=r"nothing answers at unix:.*No such file"):
        run("--url", f"unix:{tmp_path / 'admin.sock'}")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b'{"sentence": 5}'])
def test_something_that_is_no_relay_is_told_apart(relay, body):
    relay.body = body
    with pytest.raises(status.NoAnswer, match="not as an event relay"):
        run("--url", relay.address)


def test_a_refusal_is_handed_on_in_its_own_words(relay):
    relay.code, relay.body = 403, b"This page answers to localhost.\nOpen it so.\n"
    with pytest.raises(status.NoAnswer, match=r"answers 403: This page answers to localhost\. Open it so\."):
        run("--url", relay.address)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9464", "http://", "http://127.0.0.1:port", "http://[::1"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(url):
    with pytest.raises(status.NoAnswer, match="is no address"):
        run("--url", url)


def test_a_report_with_more_fields_than_we_know_is_read(relay, capsys):
    relay.body = json.dumps(json.loads(relay.body) | {"fresh": {"a": 1}}).encode()
    assert run("--url", relay.address) == 0
    assert "Backing off" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("width", [40, 80, 110])
def test_no_line_is_wider_than_the_terminal(name, width):
    text = status.render(report(name), width=width, colour=False)
    for line in text.splitlines():
        if not line.startswith(report(name).view.footer[:8]) and "relay dlq list" not in line:
            assert len(line) <= width


def test_words_of_others_cannot_steer_the_terminal():
    state = snapshot(forward=forward(attempts=(attempt("rejected", 400, detail="\x1b[2J\x07\r\nboo"),)))
    text = status.render(make_report(state, Trend(), ((0.0, 0),)), width=200, colour=False)
    assert "?[2J???boo" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_the_curve_is_as_high_as_the_queue_was_deep():
    state = snapshot()
    depths = tuple((900.0 - 9 * i, 100 if i >= 50 else 0) for i in range(101))
    text = status.render(make_report(state, Trend(), depths), width=54, colour=False)
    (blocks,) = (line.strip() for line in text.splitlines() if set(line.strip()) <= set("▁▂▃▄▅▆▇█") and line.strip())
    assert blocks == "▁" * 25 + "█" * 25


def test_watch_shows_it_anew_until_ctrl_c(relay):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "relay", "status", "--watch", "--url", relay.address]
    with subprocess.Popen(command, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = _read_until(master, b"Backing off")
        relay.body = msgspec.json.encode(report("flowing"))
        shown += _read_until(master, b"Flowing")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    os.close(master)
    assert shown.count(b"\x1b[H\x1b[2J") >= 2
    assert b"\x1b[33m" in shown  # the amber dot of backing off
    assert b"Traceback" not in shown


def test_watch_waits_for_a_relay_that_does_not_answer_yet():
    port = closed_port()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "relay", "status", "--watch", "--url", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=slave, stderr=slave) as process:
        os.close(slave)
        _read_until(master, b"nothing answers")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    os.close(master)


def _read_until(terminal: int, words: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 15
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{words!r} never came; {seen!r}"
        seen += os.read(terminal, 65_536)
    return seen
