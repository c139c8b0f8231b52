from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import msgspec
import pytest
from admin.scenes import SCENES, attempt, failures, forward, history, lane, queue, snapshot
from hypothesis import given
from hypothesis import strategies as st

from relay.admin.page import CONTENT_SECURITY_POLICY, render
from relay.admin.report import CHART_HEIGHT, LANES_SHOWN_MAX, Report, make_report
from relay.observe import Snapshot, Trend

if TYPE_CHECKING:
    from collections.abc import Iterator


def report_of(state: Snapshot, depth: tuple[tuple[float, int], ...] | None = None) -> Report:
    return make_report(state, Trend(), ((0.0, state.queue.events),) if depth is None else depth)


def scene(name: str) -> Report:
    past, state = history(name), SCENES[name]
    return make_report(state, past.trend(state), past.depths(state))


class Reader(html.parser.HTMLParser):
    """Every element with its attributes, and the text outside style and script."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.mark.parametrize("name", SCENES)
def test_the_page_is_complete_without_its_script(name):
    report = scene(name)
    page = Reader(render(report))
    for words in (report.headline.lead, report.headline.rest, report.view.title, report.view.footer):
        assert words in page.text
    for fact in report.view.facts:
        assert fact.value in page.text
        assert fact.note in page.text
    for table in (report.view.lanes, report.view.attempts, report.view.dead_letters):
        for row in table.rows:
            assert all(cell.text in page.text for cell in row)
    assert ("path", {"class": "line", "id": "chart-line", "d": report.view.chart.line}) in page.elements


def test_the_depth_stands_in_the_title_of_the_tab():
    assert scene("backing off").view.title == "121,620 queued · event relay"


def test_words_of_others_are_never_markup():
    attack = "</script><img src=x onerror=alert(1)>&\"'"
    state = snapshot(
        upstream=attack,
        version=attack,
        queue=queue(ready=False, refusal=attack, dead_lettered_events={attack: 1}),
        lanes=(lane(attack, "parked", error=attack),),
        forward=forward(attempts=(attempt("retryable", 503, detail=attack, fingerprint=attack), *failures(1, attack))),
    )
    page = render(report_of(state))
    assert b"<img" not in page
    assert page.count(b"</script>") == 1
    assert not [tag for tag, attributes in Reader(page).elements if "onerror" in attributes]
    assert attack in Reader(page).text


def test_nothing_is_fetched_from_elsewhere():
    page = render(scene("parked"))
    links = [
        value
        for _, attributes in Reader(page).elements
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert links
    assert all(link.startswith(("/", "data:")) and not link.startswith("//") for link in links)
    assert b"@import" not in page
    assert b"url(" not in page


def test_the_policy_admits_this_style_and_this_script_alone():
    page = render(scene("idle")).decode()
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = hashlib.sha256(inline.encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in CONTENT_SECURITY_POLICY
    assert not [tag for tag, attributes in Reader(page.encode()).elements if "style" in attributes]


def test_a_thousand_lanes_make_a_page_that_ends():
    lanes = tuple(lane(f"{i:08x}", oldest_age_seconds=i) for i in range(1_000))
    table = report_of(snapshot(queue=queue(events=34_000), lanes=(*lanes, lane("parkedxx", "parked")))).view.lanes
    assert len(table.rows) == LANES_SHOWN_MAX
    assert [row[0].text for row in table.rows[:2]] == ["parkedxx", "000003e7"]
    assert table.note == "981 more, all later in this order."


def test_long_words_of_others_are_cut():
    table = report_of(snapshot(forward=forward(attempts=(attempt("rejected", 400, detail="x" * 5_000),)))).view.attempts
    assert len(table.rows[0][-1].text) == 160


@given(
    depths=st.lists(st.tuples(st.floats(0.001, 900), st.integers(0, 10**12)), max_size=20), last=st.integers(0, 10**12)
)
def test_the_curve_stays_in_its_picture(depths, last):
    depth = (*sorted(depths, reverse=True), (0.0, last))
    chart = report_of(snapshot(), depth).view.chart
    numbers = [float(number) for number in re.findall(r"-?[\d.e+]+", chart.line)]
    assert all(0 <= x <= 900 for x in numbers[::2])
    assert all(0 <= y <= CHART_HEIGHT for y in numbers[1::2])
    top = int(chart.top.replace(",", ""))
    assert max(10, *(number for _, number in depth)) <= top
    assert str(top).rstrip("0") in ("1", "2", "5")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--virtual-time-budget=6000",
    "--dump-dom",
)


def later() -> Report:
    past, state = history("flowing"), msgspec.structs.replace(SCENES["flowing"], version="9.9.9")
    return make_report(state, past.trend(state), past.depths(state))


class Relay(BaseHTTPRequestHandler):
    """Serves the page as it was and the JSON as it is, as if the queue had drained and the relay been renewed."""

    answers = True

    def do_GET(self):
        if self.path == "/":
            self._send(200, render(scene("backing off")), "text/html; charset=utf-8")
        elif self.path == "/status" and self.answers:
            self._send(200, msgspec.json.encode(later()), "application/json")
        else:
            self._send(503, b"no", "text/plain")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


class MuteRelay(Relay):
    """Stops answering once the page is open."""

    answers = False


def states(name: str) -> list[tuple[str, str | None]]:
    return [(row[1].text, row[1].tone) for row in scene(name).view.lanes.rows]


def test_a_lane_that_only_upstream_holds_up_is_told_so_and_is_not_green():
    assert states("backing off") == [("waiting for upstream", "warn")] * 3
    assert states("catching up") == [("active", "good")] * 3
    assert states("parked") == [("parked", "warn"), ("active", "good"), ("active", "good")]


@contextmanager
def serving(handler: type[Relay]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:  # a test that skips must not leave a thread that keeps the whole run from ending
        server.shutdown()
        thread.join()
        server.server_close()


def browse(url: str) -> Reader:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return Reader(done.stdout)


def test_a_real_browser_keeps_the_page_up_to_date():
    with serving(Relay) as url:
        page, now = browse(url), later()
    for words in (now.headline.lead, now.headline.rest, now.view.title, now.view.footer):
        assert words in page.text
    assert "answers 503" not in page.text
    for fact in now.view.facts:
        assert fact.value in page.text
        assert fact.note in page.text
    for row in (*now.view.lanes.rows, *now.view.attempts.rows):
        assert all(cell.text in page.text for cell in row)
    assert ("path", {"class": "line", "id": "chart-line", "d": now.view.chart.line}) in page.elements


def test_a_real_browser_says_when_the_relay_has_fallen_silent():
    with serving(MuteRelay) as url:
        page, then = browse(url), scene("backing off")
    assert "The relay has not answered this page since" in page.text
    assert "no answer · event relay" in page.text
    assert then.headline.lead in page.text
