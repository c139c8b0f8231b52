"""`relay sink`: a stand-in for Statsig that answers as it does and prints every event it is sent."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from relay.commands.witness import Unreadable, inflate, split_events
from relay.config import Address, values

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "sink"
HELP = "a stand-in upstream for trying things out: answers like Statsig, prints each event as a JSON line"

ADDRESS_DEFAULT: Final = "127.0.0.1:9465"
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
STATUS_MIN, STATUS_MAX = 200, 599
_EXAMPLE: Final = """\
example: let three of ten requests fail, half a second late, and keep what arrives
  relay sink --fail 503:0.3 --delay 0.5 > arrived.jsonl
then point the relay at it, in another terminal
  RELAY_UPSTREAM__URL=http://127.0.0.1:9465/v1/log_event relay run
"""


class Failure(msgspec.Struct, frozen=True):
    """Answer `share` (above 0, up to 1) of the requests with `status`, evenly: of 10 at 0.3 the 4th, 7th and 10th."""

    status: int
    share: float = 1.0

    def strikes(self, nth: int) -> bool:
        """Tell whether the nth request (from 1) is one that fails."""
        return int(nth * self.share + 1e-9) > int((nth - 1) * self.share + 1e-9)


class Received(msgspec.Struct, frozen=True):
    """One request as it came, and what it was answered."""

    path: str
    headers: tuple[tuple[str, str], ...]
    status: int
    events: tuple[bytes, ...]
    """Raw bytes of each; empty where the body could not be read."""
    detail: str
    """Why it was refused, empty where it was not."""

    def header(self, name: str) -> str:
        """Give a header by its lower-case name, or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class Sink:
    """A stand-in upstream: 202 `{"success": true}` for what Statsig would take, a clear refusal for the rest.

    `receive` is called with each request right before its answer leaves. `failure` and `delay_seconds` may be changed
    while it runs.
    """

    def __init__(
        self,
        receive: Callable[[Received], None],
        *,
        failure: Failure | None = None,
        delay_seconds: float = 0.0,
    ) -> None:
        self.failure = failure
        self.delay_seconds = delay_seconds
        self._receive = receive
        self._requests = 0
        self._flow = asyncio.Event()
        self._flow.set()
        self._runner: web.AppRunner | None = None

    async def start(self, address: Address) -> str:
        """Listen, and give the URL to send to; raises OSError where it cannot."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        bound = Address(host, port, ipv6=":" in host)
        return f"http://{bound}/v1/log_event"

    async def stop(self) -> None:
        """Close the port and every connection; what is held back is never answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def hold(self) -> None:
        """Answer nothing until `release`; requests wait."""
        self._flow.clear()

    def release(self) -> None:
        """Answer what waits, and all that follows."""
        self._flow.set()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, "send log_event requests with POST")
        body = await request.read()
        await self._flow.wait()
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        self._requests += 1
        status, events, detail = self._judge(request, body)
        headers = tuple(request.headers.items())
        self._receive(Received(path=request.path, headers=headers, status=status, events=events, detail=detail))
        if detail:
            return _refuse(status, detail)
        return web.json_response({"success": True}, status=HTTPStatus.ACCEPTED)

    def _judge(self, request: web.Request, body: bytes) -> tuple[int, tuple[bytes, ...], str]:
        """Give the status to answer, the events that were sent and, for a refusal, its reason."""
        try:
            encoding = request.headers.get("Content-Encoding", "").lower()
            events = tuple(split_events(inflate(body, encoding)))
        except Unreadable as exc:
            return HTTPStatus.BAD_REQUEST, (), str(exc)
        if self.failure is not None and self.failure.strikes(self._requests):
            return self.failure.status, events, f"told to fail with {self.failure.status}"
        if not request.headers.get("statsig-api-key"):
            return HTTPStatus.UNAUTHORIZED, events, "no statsig-api-key header"
        return HTTPStatus.ACCEPTED, events, ""


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"success": False, "message": message}, status=status)


def one_line(event: bytes) -> bytes:
    """Give the event's bytes as they are, save for line breaks, which JSON allows between its tokens only."""
    return event.replace(b"\r", b" ").replace(b"\n", b" ")


def parse_address(text: str) -> Address:
    """Read `host:port`, `[v6]:port` or `:port`, which is loopback; the error says what is expected."""
    expected = argparse.ArgumentTypeError(f"{text!r} is no address: give host:port, for example {ADDRESS_DEFAULT}")
    try:
        address = values.parse_address(f"127.0.0.1{text}" if text.startswith(":") and text.count(":") == 1 else text)
    except values.Unfit as exc:
        raise expected from exc
    if address.path:
        raise expected
    return address


def parse_failure(text: str) -> Failure:
    """Read `STATUS` or `STATUS:SHARE`; the error says what is expected."""
    status, colon, share = text.partition(":")
    try:
        failure = Failure(int(status), float(share) if colon else 1.0)
    except ValueError:
        failure = Failure(0)
    if not (STATUS_MIN <= failure.status <= STATUS_MAX and 0 < failure.share <= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no failure: give STATUS or STATUS:SHARE, a status from {STATUS_MIN} to {STATUS_MAX} "
            "and a share above 0 and up to 1, for example 503:0.3"
        )
    return failure


def parse_delay(text: str) -> float:
    """Read a number of seconds from 0 up; the error says what is expected."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no delay: give seconds from 0 up, for example 0.5")
    return seconds


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "--address",
        type=parse_address,
        default=ADDRESS_DEFAULT,
        metavar="HOST:PORT",
        help="where to listen (default: %(default)s)",
    )
    parser.add_argument(
        "--fail", type=parse_failure, metavar="STATUS[:SHARE]", help="answer all requests, or that share, with a status"
    )
    parser.add_argument("--delay", type=parse_delay, default=0.0, metavar="SECONDS", help="wait before each answer")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, then 0; 1 for an address that cannot be used."""
    return asyncio.run(_serve(arguments.address, arguments.fail, arguments.delay))


async def _serve(address: Address, failure: Failure | None, delay_seconds: float) -> int:
    stop = asyncio.Event()
    reader_gone: list[BrokenPipeError] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def receive(received: Received) -> None:
        try:
            _show(received)
        except BrokenPipeError as exc:  # whoever read our lines has gone, as `head` does
            reader_gone.append(exc)
            stop.set()

    sink = Sink(receive, failure=failure, delay_seconds=delay_seconds)
    try:
        url = await sink.start(address)
    except OSError as exc:
        print(f"relay sink: cannot listen on {address}: {exc.strerror or exc}", file=sys.stderr)
        print("Is another sink running? Choose another port, for example --address 127.0.0.1:9466", file=sys.stderr)
        return 1
    print(f"relay sink: listening, send to {url}; Ctrl-C stops it", file=sys.stderr, flush=True)
    await stop.wait()
    await sink.stop()
    if reader_gone:
        raise reader_gone[0]
    return 0


def _show(received: Received) -> None:
    """Print the events of a request that was taken on stdout, a summary of every request on stderr."""
    taken = not received.detail
    summary = f"{received.status} {received.path} events={len(received.events)}"
    print(f"relay sink: {summary}{'' if taken else f' ({received.detail})'}", file=sys.stderr, flush=True)
    if taken:
        sys.stdout.buffer.write(b"".join(one_line(event) + b"\n" for event in received.events))
        sys.stdout.buffer.flush()
