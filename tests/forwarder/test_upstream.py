from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time

import pytest
from fakes.upstream import YES_BODY, ScriptedUpstream

from relay.forwarder.delivery import ConnectFailed, Malformed, Reset, Response, TimedOut
from relay.forwarder.upstream import ANSWER_BYTES_MAX, Attempt, Upstream

BODY = json.dumps({"events": [{"eventName": "e"}]}).encode()
HEADERS = {"statsig-event-count": "1", "content-type": "application/json"}


def client(url: str, **options) -> Upstream:
    return Upstream(**{"url": url, "timeout_seconds": 5.0, "connect_seconds_max": 2.0} | options)


async def once(script, body: bytes = BODY, *, seconds_max: float = 5.0, posts: int = 1):
    """Give what came of the last of some posts, and the upstream."""
    async with ScriptedUpstream(script) as fake, client(fake.url) as upstream:
        for _ in range(posts):
            attempt = await upstream.post(body, HEADERS, seconds_max=seconds_max)
        return attempt, fake


async def test_a_yes_is_a_response_with_its_body():
    attempt, fake = await once(lambda _: "yes")
    assert attempt.answer == Response(202, YES_BODY)
    assert not attempt.raced
    assert fake.taken == {"e": 1}


async def test_connections_are_kept():
    _, fake = await once(lambda _: "yes", posts=5)
    assert (fake.requests, fake.connections) == (5, 1)


@pytest.mark.parametrize("status", [204, 307, 400, 401, 413, 429, 500, 503, 599])
async def test_a_status_comes_from_a_parsed_response(status):
    attempt, _ = await once(lambda _: status)
    assert isinstance(attempt.answer, Response)
    assert attempt.answer.status == status


async def test_a_malformed_status_line_is_no_400():
    attempt, _ = await once(lambda _: "malformed")
    assert attempt.answer == Malformed(sent=True, detail="the answer is not HTTP")


async def test_a_redirect_is_never_followed():
    attempt, fake = await once(lambda _: "redirect")
    assert attempt.answer.status == 307
    await asyncio.sleep(0.05)
    assert fake.elsewhere == 0
    assert fake.requests == 1


async def test_a_bomb_is_neither_inflated_nor_read_to_its_end():
    attempt, _ = await once(lambda _: "bomb")
    assert attempt.answer.status == 200
    assert len(attempt.answer.body) <= ANSWER_BYTES_MAX
    assert attempt.answer.body[:2] == b"\x1f\x8b"
    assert not attempt.answer.complete


async def test_silence_after_the_body_is_a_time_out_in_doubt():
    began = time.monotonic()
    attempt, _ = await once(lambda _: "hang", seconds_max=0.3)
    assert attempt.answer == TimedOut(sent=True, detail="timed out while waiting for the answer")
    assert time.monotonic() - began < 1


async def test_an_upstream_that_stops_reading_is_a_time_out_without_doubt():
    attempt, _ = await once(lambda _: "stall", os.urandom(32 << 20), seconds_max=0.5)
    assert attempt.answer == TimedOut(sent=False, detail="timed out while sending")


async def test_a_socket_that_takes_nothing_is_given_up_before_the_attempts_end():
    began = time.monotonic()
    async with ScriptedUpstream(lambda _: "stall") as fake, client(fake.url, stall_seconds_max=0.3) as upstream:
        attempt = await upstream.post(os.urandom(32 << 20), HEADERS, seconds_max=20)
    assert time.monotonic() - began < 5
    assert attempt.answer == TimedOut(sent=False, detail="timed out while sending")


async def test_an_answer_of_a_byte_a_second_is_a_time_out_in_doubt():
    attempt, _ = await once(lambda _: "trickle", seconds_max=0.5)
    assert attempt.answer == TimedOut(sent=True, detail="timed out while waiting for the answer")


async def test_a_reset_before_the_body_has_left_is_no_doubt():
    attempt, _ = await once(lambda _: "reset_during", os.urandom(32 << 20))
    assert isinstance(attempt.answer, Reset)
    assert not attempt.answer.sent


@pytest.mark.parametrize("fault", ["reset_after", "close_quietly", "cut_head"])
async def test_a_connection_lost_after_the_body_is_in_doubt(fault):
    attempt, fake = await once(lambda _: fault)
    assert isinstance(attempt.answer, Reset)
    assert attempt.answer.sent
    assert fake.requests == 1, "a fresh connection is not tried twice"


async def test_a_yes_cut_short_is_incomplete():
    attempt, _ = await once(lambda _: "cut_body")
    assert attempt.answer == Response(202, YES_BODY[:6], complete=False)


async def test_a_status_whose_body_does_not_follow_is_taken_without_it_and_frees_its_place():
    began = time.monotonic()
    async with (
        ScriptedUpstream(lambda _: "slow_body") as fake,
        client(fake.url, answer_body_seconds_max=0.2) as upstream,
    ):
        attempt = await upstream.post(BODY, HEADERS, seconds_max=20)
    assert attempt.answer == Response(202, YES_BODY[:6], complete=False)
    assert time.monotonic() - began < 5


async def test_a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again():
    _, fake = await once(lambda at: "yes" if at else "huge", posts=2)
    assert (fake.requests, fake.connections) == (2, 2)


async def test_a_refusal_that_comes_before_the_body_was_read_counts():
    attempt, _ = await once(lambda _: "early_413", b"x" * 1000)
    assert attempt.answer == Response(413, b"too big")


async def test_a_server_that_closes_after_each_reply_costs_no_failure():
    async with ScriptedUpstream(lambda _: "close") as fake, client(fake.url) as upstream:
        attempts = [await upstream.post(BODY, HEADERS, seconds_max=5) for _ in range(50)]
        assert all(attempt.answer == Response(202, YES_BODY) for attempt in attempts)
        assert fake.taken["e"] == 50


async def test_a_connection_that_was_closed_before_the_post_is_never_used_for_it():
    """The close has arrived, the loop has not looked yet: only such a look keeps the post off that connection."""
    closed = threading.Semaphore(0)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a test that fails ends before it
            play(listener)

    def play(listener: socket.socket) -> None:
        for _ in range(20):
            connection, _ = listener.accept()
            with connection:
                request = b""
                while not request.endswith(BODY):  # closed with some of it unread, the answer would be reset too
                    request += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 17\r\n\r\n" + YES_BODY)
            closed.release()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        async with client(f"http://127.0.0.1:{listener.getsockname()[1]}/") as upstream:
            attempts = []
            for _ in range(20):
                attempts.append(await upstream.post(BODY, HEADERS, seconds_max=5))
                if attempts[-1].raced:
                    break
                assert closed.acquire(timeout=5)  # blocks the loop on purpose: the close comes while it does not look
            assert all(attempt == Attempt(Response(202, YES_BODY)) for attempt in attempts)


async def test_a_kept_connection_that_ends_under_us_is_retried_once_on_a_fresh_one_and_reported():
    async with ScriptedUpstream(lambda at: "close_quietly" if at == 1 else "yes") as fake, client(fake.url) as upstream:
        await upstream.post(BODY, HEADERS, seconds_max=5)
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
        assert attempt.answer == Response(202, YES_BODY)
        assert attempt.raced
        assert (fake.requests, fake.connections) == (3, 2)


async def test_the_retry_takes_no_other_kept_connection_for_that_may_be_closed_as_well():
    async with ScriptedUpstream(lambda at: "close_quietly" if at == 2 else "yes") as fake, client(fake.url) as upstream:
        await asyncio.gather(*(upstream.post(BODY, HEADERS, seconds_max=5) for _ in range(2)))
        assert fake.connections == 2
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
        assert attempt.raced
        assert fake.connections == 3


async def test_the_race_is_retried_only_once():
    async with ScriptedUpstream(lambda at: "close_quietly" if at else "yes") as fake, client(fake.url) as upstream:
        await upstream.post(BODY, HEADERS, seconds_max=5)
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
        assert isinstance(attempt.answer, Reset)
        assert fake.requests == 3


async def test_retry_after_and_date_come_along():
    async def play(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nDate: Wed, 18 Nov 2026 11:06:40 GMT\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    async with server, client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as upstream:
        answer = (await upstream.post(BODY, HEADERS, seconds_max=5)).answer
    assert (answer.status, answer.retry_after, answer.date) == (503, "7", "Wed, 18 Nov 2026 11:06:40 GMT")


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"http://127.0.0.1:{closed_port()}/", "refused"),
        ("http://no-such-host.invalid/", "DNS: "),
    ],
)
async def test_without_a_connection_nothing_was_sent(url, words):
    async with client(url) as upstream:
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
    assert isinstance(attempt.answer, ConnectFailed)
    assert words in attempt.answer.detail
    assert "ssl" not in attempt.answer.detail


async def test_a_connection_that_never_comes_about_is_given_up_in_time():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for other in waiting:
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        began = time.monotonic()
        async with client(f"http://127.0.0.1:{sock.getsockname()[1]}/", connect_seconds_max=0.3) as upstream:
            attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
        for other in waiting:
            other.close()
    assert attempt.answer == ConnectFailed("no connection in time")
    assert time.monotonic() - began < 2


async def test_the_environments_proxy_is_not_trusted_and_the_configured_one_is_used(monkeypatch):
    async with ScriptedUpstream(lambda _: "yes") as fake:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        async with client(fake.url) as direct:
            assert (await direct.post(BODY, HEADERS, seconds_max=5)).answer == Response(202, YES_BODY)
        async with client("http://upstream.invalid/v1/log_event", proxy=f"http://127.0.0.1:{fake.port}") as proxied:
            assert (await proxied.post(BODY, HEADERS, seconds_max=5)).answer == Response(202, YES_BODY)
        assert fake.taken["e"] == 2


async def test_a_proxy_that_refuses_is_no_answer_of_upstreams():
    async def play(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, client("https://upstream.invalid/v1/log_event", proxy=proxy) as upstream:
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
    assert attempt.answer == ConnectFailed("the proxy refused with 403")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, and one for a client."""
    folder = tmp_path_factory.mktemp("tls")
    for name, subject in (("server", "/CN=127.0.0.1"), ("client", "/CN=relay")):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject]
        command += [
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            folder / f"{name}.key",
            "-out",
            folder / f"{name}.pem",
        ]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def server_context(certificates, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "client.pem")
    return context


async def test_a_certificate_that_nobody_vouches_for_gets_no_key(certificates):
    async with ScriptedUpstream(tls=server_context(certificates)) as fake, client(fake.url) as upstream:
        attempt = await upstream.post(BODY, HEADERS, seconds_max=5)
    assert isinstance(attempt.answer, ConnectFailed)
    assert attempt.answer.detail.startswith("TLS: ")
    assert fake.requests == 0


async def test_the_operators_ca_and_client_certificate_are_used(certificates):
    options = {
        "ca_file": str(certificates / "server.pem"),
        "client_cert_file": str(certificates / "client.pem"),
        "client_key_file": str(certificates / "client.key"),
    }
    tls = server_context(certificates, ask_client=True)
    async with ScriptedUpstream(tls=tls) as fake, client(fake.url, **options) as upstream:
        assert (await upstream.post(BODY, HEADERS, seconds_max=5)).answer == Response(202, YES_BODY)


class Tunnel:
    """A proxy that connects through to whatever CONNECT names, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, _, port = self.asked[-1].split()[1].decode().rpartition(":")
        there, onwards = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [asyncio.create_task(pipe(reader, onwards)), asyncio.create_task(pipe(there, writer))]
        self._tasks.update(ways)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_through_a_proxy_tls_goes_to_upstream_itself_and_the_proxys_password_only_to_the_proxy(certificates):
    tunnel = Tunnel()
    server = await asyncio.start_server(tunnel.serve, "127.0.0.1", 0)
    options = {
        "proxy": f"http://relay:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "ca_file": str(certificates / "server.pem"),
    }
    async with server, ScriptedUpstream(tls=server_context(certificates)) as fake, client(fake.url, **options) as way:
        assert (await way.post(BODY, HEADERS | {"statsig-api-key": "secret-a"}, seconds_max=5)).answer.status == 202
        (asked,) = tunnel.asked
        assert asked.startswith(b"CONNECT 127.0.0.1:%d " % fake.port)
        assert b"Proxy-Authorization: Basic cmVsYXk6cGFzcw==" in asked
        assert b"secret-a" not in asked
        assert fake.headers[0]["statsig-api-key"] == "secret-a"
        assert "proxy-authorization" not in fake.headers[0]


async def test_speaking_tls_to_a_server_that_does_not_is_no_connection():
    async with ScriptedUpstream() as fake, client(fake.url.replace("http:", "https:")) as upstream:
        attempt = await upstream.post(BODY, HEADERS, seconds_max=2)
    assert isinstance(attempt.answer, ConnectFailed)
