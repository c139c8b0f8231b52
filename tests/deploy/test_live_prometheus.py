"""A real Prometheus scrapes a relay's metrics page: every panel and rule has data, one alert reaches a webhook."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Life

pytestmark = pytest.mark.slow

GRAFANA = {"$__rate_interval": "5s", "$__range": "10s", "$job": ".+", "$instance": ".+"}
"""What Grafana puts in place of its variables."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def serving(answer: Callable[[str, bytes], bytes]) -> Iterator[int]:
    """Answer every request on a port of loopback with what `answer` gives for its path and body."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            page = answer(self.path, body)
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_GET = do_POST = _answer  # noqa: N815  the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="stand-in", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(folder: Path, *words: str) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(what: str, look: Callable[[], Any], seconds: float = 40) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except OSError:  # not up yet
            pass
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s in vain for {what}")


class Prometheus:
    """The few calls of its HTTP API that the tests make."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expr: str) -> list[Any]:
        found: list[Any] = self._get(f"query?{urlencode({'query': expr})}")["result"]
        return found

    def rules(self) -> list[Any]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str) -> Any:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=10)) as connection:
            connection.request("GET", f"/api/v1/{what}")
            return json.load(connection.getresponse())["data"]


class Scene:
    """A Prometheus beside a relay, and an Alertmanager that tells a webhook."""

    def __init__(self, prometheus: Prometheus, life: Life, notified: list[tuple[str, Any]]) -> None:
        self.prometheus, self.life, self.notified = prometheus, life, notified


@pytest.fixture(scope="module")
def scene(deploy: Path, tmp_path_factory: pytest.TempPathFactory, life: Life) -> Iterator[Scene]:
    for name, package in (("prometheus", "prometheus"), ("prometheus-alertmanager", "prometheus-alertmanager")):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian package {package})")
    tmp_path = tmp_path_factory.mktemp("scene")
    notified: list[tuple[str, Any]] = []

    def scraped(_path: str, _body: bytes) -> bytes:
        life.turn()
        return life.page()

    def hooked(path: str, body: bytes) -> bytes:
        notified.append((path, json.loads(body)))
        return b""

    with ExitStack() as stack:
        relay, hook = stack.enter_context(serving(scraped)), stack.enter_context(serving(hooked))
        alertmanager, prometheus = free_port(), free_port()
        _write_alertmanager(deploy, tmp_path, hook)
        _write_prometheus(deploy, tmp_path, relay, alertmanager)
        (tmp_path / "am").mkdir()
        (tmp_path / "pm").mkdir()
        stack.enter_context(
            running(
                tmp_path / "am", "prometheus-alertmanager", f"--config.file={tmp_path}/alertmanager.yml",
                f"--storage.path={tmp_path}/am", f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
            )
        )  # fmt: skip
        stack.enter_context(
            running(
                tmp_path / "pm", "prometheus", f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/pm/data", f"--web.listen-address=127.0.0.1:{prometheus}",
            )
        )  # fmt: skip
        api = Prometheus(prometheus)
        wait_for("five scrapes", lambda: len(api.query("event_relay_build_info")) and life.turns > 5)
        yield Scene(api, life, notified)


def _write_prometheus(deploy: Path, folder: Path, relay: int, alertmanager: int) -> None:
    """The example, at a second's pace and with this scene's addresses; the rules as they are but for their pace."""
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{relay}"]}]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rules = (deploy / "prometheus" / "rules.yml").read_text(encoding="utf-8").replace("interval: 30s", "interval: 1s")
    (folder / "rules.yml").write_text(rules, encoding="utf-8")


def _write_alertmanager(deploy: Path, folder: Path, hook: int) -> None:
    text = (deploy / "prometheus" / "alertmanager.yml").read_text(encoding="utf-8")
    text = re.sub(r"https://(\w+)\.example/event-relay", rf"http://127.0.0.1:{hook}/\1", text)
    (folder / "alertmanager.yml").write_text(text.replace("group_wait: 30s", "group_wait: 1s"), encoding="utf-8")


def _as_grafana_asks(expr: str) -> str:
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    return expr


def has_data(found: list[Any]) -> bool:
    """NaN is what a ratio of nothing to nothing gives: no data."""
    return any(one["value"][1] != "NaN" for one in found)


def test_every_panel_has_data(scene: Scene, deploy: Path) -> None:
    board = json.loads((deploy / "grafana" / "event-relay.json").read_text(encoding="utf-8"))
    targets = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    asked = ((title, expr, scene.prometheus.query(_as_grafana_asks(expr))) for title, expr in targets)
    assert [f"{title}: {expr}" for title, expr, found in asked if not has_data(found)] == []


def test_every_recorded_series_has_data_and_no_rule_fails(scene: Scene) -> None:
    names = [rule["name"] for rule in scene.prometheus.rules() if rule["type"] == "recording"]
    for name in names:
        wait_for(name, lambda name=name: has_data(scene.prometheus.query(name)))
    assert [(rule["name"], rule["lastError"]) for rule in scene.prometheus.rules() if rule["health"] == "err"] == []


def test_an_alert_goes_the_whole_way_to_the_pager(scene: Scene) -> None:
    def page() -> tuple[str, Any] | None:
        return next((one for one in scene.notified if "EventRelayDroppingEvents" in json.dumps(one[1])), None)

    assert page() is None
    scene.life.dropped = 64
    path, message = wait_for("the page", page)
    assert path == "/pager"
    assert message["status"] == "firing"
    assert message["alerts"][0]["annotations"]["runbook_url"].endswith("#eventrelaydroppingevents")
