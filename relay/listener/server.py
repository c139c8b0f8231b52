"""The listening sockets: bound first, closed last."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from aiohttp import web

from relay.errors import RelayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.listener.door import Door

BACKLOG: Final = 1024
HEAD_SECONDS_MAX: Final = 75
"""A connection without a whole request head for this long is closed, idle ones included."""
HEADER_BYTES_MAX: Final = 16 * 1024
LINGER_SECONDS: Final = 2
"""A refused body's rest is read this long, so that the client sees the answer before the reset."""
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_log = structlog.get_logger()


class Endpoint(Protocol):
    """An address of the configuration: host and port, or the path of a Unix socket."""

    @property
    def host(self) -> str:
        """Without brackets; empty for a Unix socket."""
        ...

    @property
    def port(self) -> int:
        """0 takes any free port."""
        ...

    @property
    def path(self) -> str:
        """Of a Unix socket; empty for TCP."""
        ...


class Listener:
    """All listening sockets of the front door, on one aiohttp application."""

    def __init__(self, door: Door) -> None:
        self._door = door
        application = web.Application(client_max_size=1 << 62)  # the door caps bodies itself, and answers as promised
        application.router.add_route("*", "/{path:.*}", door.handle, expect_handler=door.check_head)
        self._runner = web.AppRunner(
            application,
            auto_decompress=False,  # its own cap is 1 MiB, answered by 413
            access_log=None,
            handle_signals=False,
            keepalive_timeout=HEAD_SECONDS_MAX,
            lingering_time=LINGER_SECONDS,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            handler_cancellation=False,  # a client that hangs up takes nothing back
        )
        self._unix_paths: list[Path] = []

    async def open(self, endpoints: Sequence[Endpoint], inherited: Sequence[socket.socket] = ()) -> list[str]:
        """Listen, on sockets a supervisor holds open where it gave some, else on the endpoints; gives their names.

        Raises RelayError where an address cannot be had. An IPv6 address is passed over on a machine without IPv6.
        """
        await self._runner.setup()
        sockets = list(inherited) or [bound for endpoint in endpoints if (bound := self._bind(endpoint)) is not None]
        if not sockets:
            raise RelayError("none of listen.address can be bound on this machine")
        for bound in sockets:
            await web.SockSite(self._runner, bound, backlog=BACKLOG).start()
        return [_name(bound) for bound in sockets]

    def drain(self) -> None:
        """Keep accepting, but ask every client to close its connection after the answer."""
        self._door.closing = True

    async def close(self, seconds_max: float) -> None:
        """Stop accepting, let those in hand be answered, close."""
        self._runner._shutdown_timeout = seconds_max  # noqa: SLF001 – a constructor argument; known only now
        await self._runner.cleanup()
        for path in self._unix_paths:
            path.unlink(missing_ok=True)

    def _bind(self, endpoint: Endpoint) -> socket.socket | None:
        try:
            if endpoint.path:
                return self._bind_unix(Path(endpoint.path))
            return _bind_tcp(endpoint.host, endpoint.port)
        except OSError as exc:
            where = endpoint.path or f"{endpoint.host}:{endpoint.port}"
            if exc.errno in _ABSENT and ":" in endpoint.host:
                _log.info("address_skipped", address=where, why="this machine has no such IPv6 address")
                return None
            raise RelayError(
                f"listen.address {where} cannot be bound: {exc.strerror}; is another relay running?"
            ) from exc

    def _bind_unix(self, path: Path) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
                path.unlink()  # left by a relay that was killed
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(path))
        path.chmod(0o660)
        self._unix_paths.append(path)
        return bound


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind((host, port))
    return bound


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _name(bound: socket.socket) -> str:
    name = bound.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{name}"
