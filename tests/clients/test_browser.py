"""The browser SDKs in a real Chromium, on a page of another origin: preflights, and what is sent as a page is left."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clients.exactly_once import check_exactly_once
from clients.tap import Tap
from daemon.harness import CountingUpstream, Daemon, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clients.tap import Exchange

NODE = Path(__file__).parent / "node"
MODULES = NODE / "node_modules"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)
PAGE_SECONDS_MAX = 40
JS_CLIENT = MODULES / "@statsig/js-client/build"
BUNDLES = {
    "js-client": JS_CLIENT / "statsig-js-client.min.js",
    "js-client-gzip": JS_CLIENT / "statsig-js-client.min.js",
    "js-client-captures": JS_CLIENT / "statsig-js-client+session-replay+web-analytics.min.js",
    "statsig-js": MODULES / "statsig-js/build/statsig-prod-web-sdk.js",
    "statsig-js-lite": MODULES / "statsig-js-lite/build/statsig-prod-web-sdk.js",
}
NO_BEACON = {"js-client-captures"}
"""Watches the page being left itself, and sends by fetch in time."""
LAST_WORDS = 20
"""So many of its events the page logs as it is left."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: run tests/clients/prepare.sh"),
    pytest.mark.skipif(not MODULES.is_dir(), reason="no SDKs from npm here: run tests/clients/prepare.sh"),
]


class Site:
    """A web server with an app's page on it; `reports` holds what the page said, `left` is set when it was left."""

    def __init__(self, sdk: str) -> None:
        self.reports: queue.Queue[object] = queue.Queue()
        self.left = threading.Event()
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(NODE))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                if self.path == "/left":
                    site.left.set()
                    self._answer(b"<!doctype html><title>Another page</title>", "text/html")
                elif self.path == "/sdk.js":
                    self._answer(BUNDLES[sdk].read_bytes(), "text/javascript")
                else:
                    super().do_GET()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.path == "/report":
                    site.reports.put(json.loads(body))
                self._answer(b"{}", "application/json")

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[Site]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def visiting(site: Site, query: str, folder: Path) -> Iterator[list[str]]:
    """Open the page in a browser of its own until it was left; give the names that it logged."""
    assert CHROMIUM is not None
    log_file = folder / "chromium.log"
    with log_file.open("wb") as log:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"{site.origin}/page/index.html?{query}"]
        browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        try:
            logged = site.reports.get(timeout=PAGE_SECONDS_MAX)
        except queue.Empty:
            raise AssertionError(f"the page never reported:\n{log_file.read_text()}") from None
        assert isinstance(logged, list), logged
        assert site.left.wait(PAGE_SECONDS_MAX), f"the page was never left:\n{log_file.read_text()}"
        yield logged
    finally:
        browser.terminate()
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()


def unasked(tap: Tap) -> list[Exchange]:
    """Give the requests that the browser sent without a preflight: beacons and simple requests."""
    return [post for post in tap.posts() if post.request.headers["sec-fetch-mode"] == "no-cors"]


@pytest.mark.parametrize("sdk", sorted(BUNDLES))
def test_every_event_of_a_page_of_another_origin_arrives_exactly_once_those_of_its_last_moment_too(
    sdk: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    with Site(sdk).serving() as site, CountingUpstream() as upstream:
        settings = {"listen": {"cors_origins": [site.origin]}}
        with (
            running(Daemon(tmp_path / "relay", upstream.url, settings=settings)) as daemon,
            Tap(daemon.port) as tap,
            visiting(site, f"sdk={sdk}&relay={tap.port}", tmp_path) as logged,
        ):
            upstream.wait_events(len(logged))
            events = check_exactly_once(
                sdk, logged, tap=tap, daemon=daemon, upstream=upstream, figure=figure, where=" in Chromium"
            )
            exchanges, beacons = tap.exchanges(), unasked(tap)
    preflights = [exchange for exchange in exchanges if exchange.method == "OPTIONS"]
    assert {exchange.request.headers["origin"] for exchange in exchanges} == {site.origin}
    assert preflights
    assert {preflight.status for preflight in preflights} <= {200, 204}
    by_beacon = Counter(json.loads(event)["eventName"] for beacon in beacons for event in beacon.events())
    if sdk not in NO_BEACON:
        assert by_beacon.keys() >= set(logged[-LAST_WORDS:]), "the page was left with these unsent"
    assert "statsig::gate_exposure" in {event["eventName"] for event in events}
    figure(f"{sdk} in Chromium: {len(preflights)} preflights, {by_beacon.total()} events by {len(beacons)} beacons")


def test_a_page_of_an_origin_that_is_not_allowed_stores_nothing_not_even_without_asking(tmp_path: Path) -> None:
    with Site("js-client").serving() as site, CountingUpstream() as upstream:
        settings = {"listen": {"cors_origins": ["http://127.0.0.1:1"]}}
        with (
            running(Daemon(tmp_path / "relay", upstream.url, settings=settings)) as daemon,
            Tap(daemon.port) as tap,
            visiting(site, f"sdk=js-client&relay={tap.port}&stranger", tmp_path),
        ):
            wait_until("the beacon was answered", lambda: len(unasked(tap)) == 2)
            metrics = daemon.metrics()
        assert {post.status for post in tap.posts()} == {403}
    assert next(post.events()[0] for post in unasked(tap)) == b'{"eventName":"forged"}'
    assert metrics.total("queue_enqueued_events_total") == 0
    assert metrics.total("dead_lettered_events_total") == 0
    assert not upstream.deliveries
