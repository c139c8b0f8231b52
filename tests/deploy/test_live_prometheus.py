"""A real Prometheus scrapes a relay's metrics page: every panel and rule has data, one alert reaches a webhook."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
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
EVENT = b'{"events": [{"eventName": "hello", "time": 1700000000000}]}'
QUIET_IN_A_HEALTHY_RELAY = {"Time until full"}


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
def running(folder: Path, *words: str, **environ: str) -> Iterator[None]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, env=os.environ | environ)
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


class Watch:
    """A Prometheus that scrapes one relay, and an Alertmanager that tells a webhook."""

    def __init__(self, prometheus: Prometheus, notified: list[tuple[str, Any]]) -> None:
        self.prometheus, self.notified = prometheus, notified

    def scrapes(self) -> int:
        found = self.prometheus.query("count_over_time(event_relay_build_info[1h])")
        return int(found[0]["value"][1]) if found else 0


@contextmanager
def watching(deploy: Path, folder: Path, relay: int) -> Iterator[Watch]:
    """Let both run, with our rules and examples, until the relay on that port has been scraped five times."""
    for name in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian package {name})")
    notified: list[tuple[str, Any]] = []

    def hooked(path: str, body: bytes) -> bytes:
        notified.append((path, json.loads(body)))
        return b""

    with ExitStack() as stack:
        hook = stack.enter_context(serving(hooked))
        alertmanager, prometheus = free_port(), free_port()
        _write_alertmanager(deploy, folder, hook)
        _write_prometheus(deploy, folder, relay, alertmanager)
        stack.enter_context(
            running(
                folder, "prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml",
                f"--storage.path={folder}/alertmanager", f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
            )
        )  # fmt: skip
        stack.enter_context(
            running(
                folder, "prometheus", f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/prometheus", f"--web.listen-address=127.0.0.1:{prometheus}",
            )
        )  # fmt: skip
        watch = Watch(Prometheus(prometheus), notified)
        wait_for("five scrapes", lambda: watch.scrapes() >= 5)
        yield watch


@pytest.fixture(scope="module")
def staged(deploy: Path, tmp_path_factory: pytest.TempPathFactory, life: Life) -> Iterator[Watch]:
    """Numbers that a test chooses, on the page that the relay's own code writes."""

    def scraped(_path: str, _body: bytes) -> bytes:
        life.turn()
        return life.page()

    with serving(scraped) as relay, watching(deploy, tmp_path_factory.mktemp("staged"), relay) as watch:
        yield watch


@pytest.fixture
def real(deploy: Path, tmp_path: Path) -> Iterator[Watch]:
    """The daemon itself, delivering a few events a second to a sink."""
    ingest, admin, upstream = free_port(), free_port(), free_port()
    settings = {
        "RELAY_LISTEN__ADDRESS": f"127.0.0.1:{ingest}",
        "RELAY_ADMIN__ADDRESS": f"127.0.0.1:{admin}",
        "RELAY_UPSTREAM__URL": f"http://127.0.0.1:{upstream}/v1/log_event",
        "RELAY_QUEUE__DIRECTORY": str(tmp_path / "queue"),
    }
    relay = (sys.executable, "-m", "relay")
    with ExitStack() as stack:
        stack.enter_context(running(tmp_path, *relay, "sink", "--address", f"127.0.0.1:{upstream}"))
        stack.enter_context(running(tmp_path, *relay, "run", **settings))
        stack.enter_context(posting(ingest))
        yield stack.enter_context(watching(deploy, tmp_path, admin))


@contextmanager
def posting(port: int) -> Iterator[None]:
    """Post one event every fifth of a second."""
    over = threading.Event()

    def post() -> None:
        while not over.wait(0.2):
            with suppress(OSError), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("POST", "/v1/log_event", EVENT, {"statsig-api-key": "secret-test"})
                connection.getresponse().read()

    thread = threading.Thread(target=post, name="app")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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


def empty_panels(watch: Watch, deploy: Path) -> dict[str, str]:
    """Titles and queries of the panels that Prometheus has nothing for."""
    board = json.loads((deploy / "grafana" / "event-relay.json").read_text(encoding="utf-8"))
    targets = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    return {title: expr for title, expr in targets if not has_data(watch.prometheus.query(_as_grafana_asks(expr)))}


def wait_for_every_recorded_series(watch: Watch) -> None:
    for name in [rule["name"] for rule in watch.prometheus.rules() if rule["type"] == "recording"]:
        wait_for(name, lambda name=name: has_data(watch.prometheus.query(name)))


def test_every_panel_has_data_whatever_happens(staged: Watch, deploy: Path) -> None:
    assert empty_panels(staged, deploy) == {}


def test_every_recorded_series_has_data_and_no_rule_fails(staged: Watch) -> None:
    wait_for_every_recorded_series(staged)
    assert [(rule["name"], rule["lastError"]) for rule in staged.prometheus.rules() if rule["health"] == "err"] == []


def test_an_alert_goes_the_whole_way_to_the_pager(staged: Watch, life: Life) -> None:
    def page() -> tuple[str, Any] | None:
        return next((one for one in staged.notified if "EventRelayDroppingEvents" in json.dumps(one[1])), None)

    assert page() is None
    life.dropped = 64
    path, message = wait_for("the page", page)
    assert path == "/pager"
    assert message["status"] == "firing"
    assert message["alerts"][0]["annotations"]["runbook_url"].endswith("#eventrelaydroppingevents")


def test_the_real_daemon_fills_every_panel_and_every_rule_and_alerts_nobody(real: Watch, deploy: Path) -> None:
    wait_for_every_recorded_series(real)
    assert set(empty_panels(real, deploy)) <= QUIET_IN_A_HEALTHY_RELAY
    assert real.prometheus.query("event_relay_queue_acked_events_total > 0")
    assert real.prometheus.query("ALERTS") == []
