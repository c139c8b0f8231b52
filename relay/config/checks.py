"""What must hold between settings, each of which is fine alone; pure."""

from __future__ import annotations

import ipaddress
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from relay.config.settings import SETTINGS
from relay.config.values import KIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.config.settings import Config
    from relay.config.values import Address

CHUNK_BYTES_MAX: Final = 512 * KIB
"""What the spool keeps in one row, unless a single event is longer; a chunk always travels whole."""

LOG_BYTES: Final = 32 * MIB
"""Of `queue.bytes_max`, kept for the write-ahead log."""
RESERVE_SHARE: Final = 64
"""One part in so many of the rest is kept so that a full queue can drain."""
EMPTY_BYTES: Final = MIB
"""More than an empty queue's file and a request's headers take."""

_QUEUE: Final = "queue.bytes_max"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Conflict(NamedTuple):
    """Settings that cannot stand together; the first is the one to blame."""

    keys: tuple[str, ...]
    reason: str


class _AtMost(NamedTuple):
    """A rule: the lower setting's value is at most the upper one's."""

    lower: str
    upper: str
    why: str


_ORDERED: Final = (
    _AtMost("listen.request_bytes_max", "listen.inflated_bytes_max", "a body may come uncompressed"),
    _AtMost("listen.event_bytes_max", "listen.inflated_bytes_max", "an event is part of a body"),
    _AtMost("listen.envelope_bytes_max", "listen.inflated_bytes_max", "the envelope is part of a body"),
    _AtMost("listen.inflated_bytes_max", "listen.memory_bytes_max", "the largest body would be refused forever"),
    _AtMost("queue.dead_letter_bytes_max", "queue.bytes_max", "dead letters count towards it"),
    _AtMost("upstream.retry_seconds_min", "upstream.retry_seconds_max", "the first wait is the shortest"),
    _AtMost("upstream.connect_seconds_max", "upstream.timeout_seconds", "connecting is part of an attempt"),
)


def find_conflicts(config: Config) -> Iterator[Conflict]:
    """Give every conflict there is, in a stable order."""
    yield from _order_conflicts(config)
    yield from _room_conflicts(config)
    yield from _batch_conflicts(config)
    yield from _credential_conflicts(config)
    yield from _address_conflicts(config)
    yield from _loop_conflicts(config)


def value_of(config: Config, key: str) -> object:
    """Give the value of a setting by its full name."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _order_conflicts(config: Config) -> Iterator[Conflict]:
    for lower, upper, why in _ORDERED:
        least, most = value_of(config, lower), value_of(config, upper)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            written = SETTINGS[upper].write(most).strip('"')
            yield Conflict((lower, upper), f"must be at most {upper} ({written}): {why}; lower it or raise that one")


def queue_holds(bytes_max: int) -> int:
    """Bytes of the largest request that an empty queue takes, in whole MiB."""
    rest = bytes_max - LOG_BYTES
    return (rest - rest // RESERVE_SHARE - EMPTY_BYTES) // MIB * MIB


def _room_conflicts(config: Config) -> Iterator[Conflict]:
    bytes_max = config.queue.bytes_max
    for name, beside in (("event_bytes_max", config.listen.envelope_bytes_max), ("inflated_bytes_max", 0)):
        holds, size = queue_holds(bytes_max) - beside, getattr(config.listen, name)
        if size > holds:
            enough = next(b for b in range(bytes_max // MIB * MIB, 1 << 62, MIB) if queue_holds(b) >= size + beside)
            most, now, better = (format_size(number).strip('"') for number in (holds, bytes_max, enough))
            reason = f"an empty queue has no room for more, and would answer 503 forever; lower it, or raise {_QUEUE}"
            yield Conflict((f"listen.{name}", _QUEUE), f"must be at most {most}: {reason} ({now}) to {better}")
            return  # the body is longer than its event


def _batch_conflicts(config: Config) -> Iterator[Conflict]:
    needed = CHUNK_BYTES_MAX + config.listen.envelope_bytes_max
    if config.upstream.batch_bytes_max < needed:
        yield Conflict(
            ("upstream.batch_bytes_max", "listen.envelope_bytes_max"),
            f"must be at least {needed}: 512KiB of events that are stored together, and listen.envelope_bytes_max",
        )


def _credential_conflicts(config: Config) -> Iterator[Conflict]:
    certificate, key = "upstream.client_cert_file", "upstream.client_key_file"
    if config.upstream.client_cert_file and not config.upstream.client_key_file:
        yield Conflict((certificate, key), f"needs {key} beside it")
    if config.upstream.client_key_file and not config.upstream.client_cert_file:
        yield Conflict((key, certificate), f"needs {certificate} beside it")


def _address_conflicts(config: Config) -> Iterator[Conflict]:
    for one, other in combinations(config.listen.address, 2):
        if _overlap(one, other):
            yield Conflict(("listen.address",), f"cannot have both {one} and {other}: one takes the other's port")
    for address in config.listen.address:
        if _overlap(config.admin.address, address):
            yield Conflict(("admin.address", "listen.address"), f"is taken by listen.address ({address})")


def _loop_conflicts(config: Config) -> Iterator[Conflict]:
    own = [("listen.address", address) for address in config.listen.address]
    own.append(("admin.address", config.admin.address))
    for key, url in (("upstream.url", config.upstream.url), ("upstream.proxy", config.upstream.proxy)):
        for setting, address in own:
            if url and _leads_to(url, address):
                yield Conflict((key, setting), f"leads back to the relay itself, {setting} ({address})")


def _overlap(one: Address, other: Address) -> bool:
    """Tell whether one machine cannot listen on both."""
    if one.path or other.path:
        return one.path == other.path
    same_port = one.port == other.port != 0
    wildcard = _is_wildcard(one.host) or _is_wildcard(other.host)
    return same_port and one.ipv6 == other.ipv6 and (wildcard or one.host == other.host)


def _leads_to(url: str, address: Address) -> bool:
    """Tell whether a call to the URL from this machine reaches a listener on the address."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if (parts.port or _DEFAULT_PORTS[parts.scheme]) != address.port:
        return False
    local = _is_local(host) and _is_local(address.host)
    vague = any(name == "localhost" or _is_wildcard(name) for name in (host, address.host))
    return host == address.host or (local and vague)


def _is_local(host: str) -> bool:
    literal = _literal(host)
    return host == "localhost" or (literal is not None and (literal.is_loopback or literal.is_unspecified))


def _is_wildcard(host: str) -> bool:
    literal = _literal(host)
    return literal is not None and literal.is_unspecified


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
