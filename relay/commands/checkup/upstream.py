"""The way to upstream: its name, a connection, its certificate, and its clock against ours.

One HEAD request of `/`, without a key: nothing that could count as an event.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from relay.admin.units import span
from relay.commands.checkup.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from urllib.parse import SplitResult

    from relay.config import Config

EXPIRY_WARN_SECONDS: Final = 14 * 86400
CLOCK_WARN_SECONDS: Final = 5.0
CLOCK_FAIL_SECONDS: Final = 300.0
_PORTS: Final = {"http": 80, "https": 443}


def check_upstream(config: Config) -> Iterator[Finding]:
    """From the name to the clock; ends with the first step that fails, for the next ones stand on it."""
    target = urlsplit(config.upstream.url)
    proxy = urlsplit(config.upstream.proxy) if config.upstream.proxy else None
    first = proxy or target
    for found in (_name(first), _connection(first, config.upstream.connect_seconds_max, via_proxy=proxy is not None)):
        yield found
        if found.level == "fail":
            return
    try:
        connection = _open(config, target, proxy)
    except _Failed as failed:
        yield failed.finding
        return
    with contextlib.closing(connection):
        if target.scheme == "https":
            yield _certificate(connection.sock, target.hostname or "")
        else:
            yield warn("TLS", "upstream.url is plain http: keys and events can be read on the way", "use https")
        yield _clock(connection, target, proxy)


class _Failed(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


def _name(where: SplitResult) -> Finding:
    host = where.hostname or ""
    try:
        found = socket.getaddrinfo(host, _port(where), type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as exc:
        return fail(
            "DNS",
            f"{host} has no address: {getattr(exc, 'strerror', None) or exc}",
            "check upstream.url and upstream.proxy, and /etc/resolv.conf or the pod's dnsPolicy",
        )
    addresses = sorted({str(one[4][0]) for one in found})
    return ok("DNS", f"{host} is {', '.join(addresses[:4])}")


def _connection(where: SplitResult, seconds_max: float, *, via_proxy: bool) -> Finding:
    name = f"{where.hostname}:{_port(where)}" + (" (the proxy)" if via_proxy else "")
    began = time.monotonic()
    try:
        socket.create_connection((where.hostname, _port(where)), timeout=seconds_max).close()
    except OSError as exc:
        why = "no answer in time" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        return fail(
            "TCP",
            f"{name} cannot be reached: {why}",
            "look at egress rules, NetworkPolicy and firewalls; behind a proxy set upstream.proxy, for HTTPS_PROXY is "
            "not trusted",
        )
    return ok("TCP", f"{name} answers after {span(time.monotonic() - began)}")


def _open(config: Config, target: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
    """Connect, through the proxy and TLS where there are any."""
    seconds, first = config.upstream.connect_seconds_max, proxy or target
    host, port = first.hostname or "", _port(first)
    try:
        if target.scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=_context(config))
            if proxy is not None:
                connection.set_tunnel(target.hostname or "", _port(target), headers=_proxy_headers(proxy))
        connection.connect()
    except ssl.SSLCertVerificationError as exc:
        cure = "give the authority that signed it as upstream.ca_file; a proxy that inspects TLS has one of its own"
        raise _Failed(fail("TLS", f"its certificate is not trusted: {exc.verify_message}", cure)) from exc
    except ssl.SSLError as exc:
        cure = "is upstream.url the right port, and are the client's certificate and key a pair that upstream knows?"
        raise _Failed(fail("TLS", f"no agreement: {exc.reason or exc}", cure)) from exc
    except OSError as exc:
        about = "TLS" if proxy is None else "proxy"
        cure = "look at upstream.proxy and what it allows" if proxy is not None else "try again; look at the network"
        raise _Failed(fail(about, f"the connection broke: {exc.strerror or exc}", cure)) from exc
    return connection


def _context(config: Config) -> ssl.SSLContext:
    upstream = config.upstream
    try:
        context = ssl.create_default_context(cafile=str(upstream.ca_file) if upstream.ca_file else None)
        if upstream.client_cert_file:
            key = str(upstream.client_key_file) if upstream.client_key_file else None
            context.load_cert_chain(str(upstream.client_cert_file), key)
    except (ssl.SSLError, OSError) as exc:
        cure = "upstream.ca_file, client_cert_file and client_key_file must be PEM, and the last two a pair"
        raise _Failed(fail("TLS", f"the certificates cannot be used: {exc.strerror or exc}", cure)) from exc
    return context


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(words.encode()).decode()}


def _certificate(connected: Any, host: str) -> Finding:
    certificate = connected.getpeercert()
    left = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    text = f"{connected.version()}, the certificate of {host} is trusted and ends in {span(left)}"
    if left < EXPIRY_WARN_SECONDS:
        return warn("TLS", text, "whoever runs upstream, or the proxy that inspects TLS, must renew it")
    return ok("TLS", text)


def _clock(connection: http.client.HTTPConnection, target: SplitResult, proxy: SplitResult | None) -> Finding:
    """Upstream shifts the events' times by what our clock differs from its own."""
    plain_proxy = proxy is not None and target.scheme == "http"
    headers = {"User-Agent": "event-relay-doctor"} | (_proxy_headers(proxy) if plain_proxy and proxy else {})
    try:
        asked = time.time()
        connection.request("HEAD", f"http://{target.netloc}/" if plain_proxy else "/", headers=headers)
        answer = connection.getresponse()
        now = (asked + time.time()) / 2
        date = email.utils.parsedate_to_datetime(answer.headers["Date"] or "")
    except (OSError, http.client.HTTPException) as exc:
        cure = "is upstream.url an HTTP server? Look at proxies between here and there"
        return fail("HTTP", f"it does not answer: {exc or type(exc).__name__}", cure)
    except (TypeError, ValueError):
        return warn("clock", "upstream's answer has no date", "compare this machine's clock by other means")
    off = now - date.timestamp() - 0.5  # the header has whole seconds
    side = "ahead of" if off > 0 else "behind"
    text = f"ours is {span(abs(off))} {side} upstream's" if abs(off) > 1 else "ours agrees with upstream's"
    cure = "set this machine's clock by NTP: upstream dates events by the difference"
    if abs(off) > CLOCK_FAIL_SECONDS:
        return fail("clock", text, cure)
    return warn("clock", text, cure) if abs(off) > CLOCK_WARN_SECONDS else ok("clock", text)


def _port(where: SplitResult) -> int:
    return where.port or _PORTS[where.scheme]
