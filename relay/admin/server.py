"""The admin port: an aiohttp application that answers GET and HEAD, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from aiohttp import web

from relay.admin.page import CONTENT_SECURITY_POLICY, render
from relay.admin.report import Report, make_report
from relay.errors import RelayError
from relay.observe import SAMPLE_SECONDS, History
from relay.observe.metrics import CONTENT_TYPE, Reading, process_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from relay.observe import Observer, Snapshot

SCRAPE_KEPT_SECONDS: Final = 0.5
"""Scrapes that come this close together share one reading: several Prometheus cost no more than one."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "event-relay",
    "X-Content-Type-Options": "nosniff",
}


CLOSE_SECONDS_MAX: Final = 1.0
"""A scrape under way may end; a browser that keeps its connection open holds nobody up."""


class Address(Protocol):
    """Where to listen: a host and a port, or the path of a Unix socket."""

    @property
    def host(self) -> str: ...  # noqa: D102  the class says it
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102


class Health(Protocol):
    """Three questions a supervisor asks; None is a yes, a text is a no and says why."""

    def live(self) -> str | None:
        """Whether the process does its work at all; a slow disk or an unreachable upstream is no reason."""
        ...

    def ready(self) -> str | None:
        """Whether events can be accepted durably now; upstream never matters."""
        ...

    def started(self) -> str | None:
        """Whether the listener answers, be it with 503."""
        ...


def make_admin(
    *,
    observer: Observer,
    source: Callable[[], Snapshot],
    health: Health,
    hosts: Collection[str] = (),
    history: History | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> web.Application:
    """Build the application. `source` is called on the event loop, every SAMPLE_SECONDS and at each look.

    `hosts` are names under which browsers may open the page, beside loopback names and IP addresses. `history` takes
    the samples; a new one unless given.
    """
    window = _Window(
        observer=observer,
        source=source,
        health=health,
        hosts=hosts,
        history=History() if history is None else history,
        monotonic=monotonic,
    )
    app = web.Application()
    app.router.add_get("/metrics", window.metrics)
    app.router.add_get("/livez", window.livez)
    app.router.add_get("/readyz", window.readyz)
    app.router.add_get("/startupz", window.startupz)
    app.router.add_get("/status", window.status)
    app.router.add_get("/", window.page)
    app.cleanup_ctx.append(window.sampling)
    app.on_response_prepare.append(_harden)
    return app


class AdminServer:
    """The application on its address, TCP or a Unix socket."""

    def __init__(self, *, observer: Observer, source: Callable[[], Snapshot], health: Health) -> None:
        self._observer = observer
        self._source = source
        self._health = health
        self._runner: web.AppRunner | None = None

    async def open(self, address: Address) -> None:
        """Bind and answer; raises RelayError where the address cannot be had."""
        app = make_admin(observer=self._observer, source=self._source, health=self._health, hosts=(address.host,))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS_MAX)
        await self._runner.setup()
        try:
            await self._site(self._runner, address).start()
        except OSError as exc:
            await self.close()
            raise RelayError(
                f"admin.address {address} cannot be opened: {exc.strerror or exc}; choose another"
            ) from exc

    async def close(self) -> None:
        """Stop answering; safe to call twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @staticmethod
    def _site(runner: web.AppRunner, address: Address) -> web.BaseSite:
        if address.path:
            return web.UnixSite(runner, address.path)
        return web.TCPSite(runner, address.host, address.port)


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


class _Window:
    """The handlers and what they share: the history and the last scrape."""

    def __init__(
        self,
        *,
        observer: Observer,
        source: Callable[[], Snapshot],
        health: Health,
        hosts: Collection[str],
        history: History,
        monotonic: Callable[[], float],
    ) -> None:
        self._observer = observer
        self._source = source
        self._health = health
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._monotonic = monotonic
        self._history = history
        self._process = process_registry()
        self._scraping = asyncio.Lock()
        self._scraped_at = float("-inf")
        self._scraped = b""
        self._timer: asyncio.TimerHandle

    async def sampling(self, _: web.Application) -> AsyncIterator[None]:
        """Take a sample of the queue every SAMPLE_SECONDS while the application runs."""
        self._sample()
        yield
        self._timer.cancel()

    def _sample(self) -> None:
        # The timer first: a source that raises costs one sample, told by the loop's handler, and not the whole curve.
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._sample)
        self._history.sample(self._source())

    async def metrics(self, _: web.Request) -> web.Response:
        """Answer the text exposition: read here on the loop (0.3 ms), written in a thread, which also reads /proc."""
        async with self._scraping:
            now = self._monotonic()
            if now - self._scraped_at >= SCRAPE_KEPT_SECONDS:
                snapshot = self._source()
                trend = self._history.trend(snapshot)
                reading = Reading(self._observer, snapshot, trend, self._process)
                self._scraped = await asyncio.to_thread(reading.text)
                self._scraped_at = now
        return web.Response(body=self._scraped, headers={"Content-Type": CONTENT_TYPE})

    async def livez(self, _: web.Request) -> web.Response:
        """Answer 200, or 503 with the reason."""
        return _verdict(self._health.live())

    async def readyz(self, _: web.Request) -> web.Response:
        """Answer 200, or 503 with the reason."""
        return _verdict(self._health.ready())

    async def startupz(self, _: web.Request) -> web.Response:
        """Answer 200, or 503 with the reason."""
        return _verdict(self._health.started())

    async def status(self, request: web.Request) -> web.Response:
        """Answer the Report as JSON."""
        self._check_host(request)
        return web.Response(body=msgspec.json.encode(self._report()), content_type="application/json")

    async def page(self, request: web.Request) -> web.Response:
        """Answer the status page."""
        self._check_host(request)
        return web.Response(body=render(self._report()), content_type="text/html", charset="utf-8")

    def _report(self) -> Report:
        snapshot = self._source()
        return make_report(snapshot, self._history.trend(snapshot), self._history.depths(snapshot))

    def _check_host(self, request: web.Request) -> None:
        """Refuse names that are not ours, or any web page could rebind its own name to this address and read along."""
        host = request.headers.get("Host", "")
        if not _is_ours(host, self._hosts):
            raise web.HTTPForbidden(
                text="This page answers to localhost, to IP addresses and to the host of admin.address.\n"
                f"Open it under one of these; the browser asked for {_printable(host)}.\n"
            )


def _is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host header is one that no foreign web page can send; browsers always send one."""
    name = host.rpartition(":")[0] if _has_port(host) else host
    name = name.lower().rstrip(".")
    if not name or name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")


def _printable(host: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in host[:100])


def _verdict(reason: str | None) -> web.Response:
    return web.Response(text="ok\n") if reason is None else web.Response(text=f"{reason}\n", status=503)
