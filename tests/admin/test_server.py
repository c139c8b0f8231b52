from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace

import msgspec
import pytest
from admin.scenes import SCENES, snapshot

from relay.admin import Report
from relay.admin.server import AdminServer
from relay.errors import RelayError

PATHS = ("/", "/status", "/metrics", "/livez", "/readyz", "/startupz")


async def test_metrics_say_what_happened_and_how_things_stand(admin, operator):
    operator.observer.request_answered(202, 0.002)
    async with admin.get("/metrics") as answer:
        text = await answer.text()
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'event_relay_ingest_requests_total{code="202"} 1.0\n' in text
    assert "event_relay_queue_events 121620.0\n" in text
    until_full = next(line for line in text.splitlines() if line.startswith("event_relay_queue_seconds_until_full "))
    assert 60 < float(until_full.split()[1]) < 86_400


async def test_what_is_served_as_metrics_is_clean(admin):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    async with admin.get("/metrics") as answer:
        served = await answer.read()
    pipe = asyncio.subprocess.PIPE
    check = await asyncio.create_subprocess_exec(promtool, "check", "metrics", stdin=pipe, stdout=pipe, stderr=pipe)
    assert await check.communicate(served) == (b"", b"")
    assert check.returncode == 0


async def test_scrapes_at_the_same_time_share_one_reading(admin, operator):
    async def scrape() -> bytes:
        async with admin.get("/metrics") as answer:
            return await answer.read()

    first, *others = await asyncio.gather(*(scrape() for _ in range(8)))
    assert others == [first] * 7
    assert operator.looks == 1 + 1  # one to sample the curve, one for all scrapes


async def test_a_later_scrape_reads_anew(admin, operator):
    async with admin.get("/metrics"):
        pass
    operator.snapshot = SCENES["flowing"]
    operator.now += 0.6
    async with admin.get("/metrics") as answer:
        assert "event_relay_queue_events 54.0\n" in await answer.text()


@pytest.mark.parametrize(("path", "question"), [("/livez", "live"), ("/readyz", "ready"), ("/startupz", "started")])
async def test_each_probe_asks_its_own_question(admin, operator, path, question):
    for others in ("live", "ready", "started"):
        operator.wrong = {others: f"{others} says no"}
        async with admin.get(path) as answer:
            expected = (503, f"{question} says no\n") if others == question else (200, "ok\n")
            assert (answer.status, await answer.text()) == expected


async def test_status_is_the_report_as_json(admin, operator):
    async with admin.get("/status") as answer:
        assert answer.content_type == "application/json"
        report = msgspec.json.decode(await answer.read(), type=Report)
    assert report.sentence.startswith("Backing off: upstream answers 503. Events are accepted and safe on disk.")
    assert "Full in" in report.sentence
    assert report.snapshot == operator.snapshot
    assert report.depth[-1] == (0.0, 121_620)
    assert len(report.depth) == 181
    assert report.trend.accepted_per_second == pytest.approx(240)


async def test_an_endless_time_until_full_is_still_json(admin, operator):
    operator.snapshot = SCENES["idle"]
    async with admin.get("/status") as answer:
        assert (await answer.json())["trend"]["seconds_until_full"] is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed_here(admin, path, method):
    async with admin.request(method, path) as answer:
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", PATHS)
async def test_head_answers_as_get_does_but_for_the_body(admin, path):
    async with admin.head(path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "x:y:z"]
)
@pytest.mark.parametrize("path", ["/", "/status"])
async def test_a_name_that_is_not_ours_cannot_read_along(admin, path, host):
    async with admin.get(path, headers={"Host": host}) as answer:
        assert answer.status == 403
        assert "localhost" in await answer.text()
        assert "121,620" not in await answer.text()


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:9464", "LOCALHOST.", "app.localhost:1", "127.0.0.1:9464", "10.1.2.3", "[::1]:9464",
        "[fe80::1]", "Relay.Example:9464",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/status"])
async def test_our_own_names_and_addresses_can(admin, path, host):
    async with admin.get(path, headers={"Host": host}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/startupz"])
async def test_probes_and_scrapes_come_under_any_name(admin, path):
    async with admin.get(path, headers={"Host": "relay.shop.svc:9464"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
async def test_every_answer_is_hardened(admin, path):
    async with admin.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"] == "event-relay"
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_curve_is_sampled_from_the_moment_the_window_opens(operator):
    server = serve(operator)
    await server.open(address("127.0.0.1"))
    assert operator.looks == 1
    await server.close()


@pytest.mark.slow
async def test_the_curve_gets_a_point_every_five_seconds(operator):
    server = serve(operator)
    await server.open(address("127.0.0.1"))
    await asyncio.sleep(10.5)
    await server.close()
    assert operator.looks == 3


async def test_a_source_that_fails_costs_one_answer(admin, operator, caplog):
    good, operator.snapshot = operator.snapshot, None
    async with admin.get("/metrics") as answer:
        assert answer.status == 500
        assert "Traceback" not in await answer.text()
    operator.snapshot = good
    async with admin.get("/metrics") as answer:
        assert answer.status == 200
    assert "NoneType" in caplog.text


def serve(operator) -> AdminServer:
    return AdminServer(observer=operator.observer, source=operator.look, health=operator)


def address(host: str = "", port: int = 0, path: str = "") -> SimpleNamespace:
    return SimpleNamespace(host=host, port=port, path=path)


async def test_an_address_in_use_says_so(operator, unused_tcp_port):
    first, second = serve(operator), serve(operator)
    await first.open(address("127.0.0.1", unused_tcp_port))
    try:
        with pytest.raises(RelayError, match=r"admin\.address .* cannot be opened: .*in use"):
            await second.open(address("127.0.0.1", unused_tcp_port))
    finally:
        await first.close()
        await second.close()


async def test_a_unix_socket_serves_too(operator, tmp_path):
    server, path = serve(operator), tmp_path / "admin.sock"
    await server.open(address(path=str(path)))
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        await writer.wait_closed()
    finally:
        await server.close()


def test_a_report_can_be_read_by_the_release_before():
    newer = msgspec.json.encode({"fresh": 1} | msgspec.to_builtins(snapshot()))
    assert msgspec.json.decode(newer, type=type(snapshot())) == snapshot()
