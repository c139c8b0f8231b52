"""The sockets the front door listens on."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from relay.errors import RelayError

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNIX_MODE: Final = 0o660
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_HINTS: Final = {
    errno.EADDRINUSE: "; is another relay running?",
    errno.EACCES: "; ports below 1024 and folders of others need a right that this process does not have",
    errno.EADDRNOTAVAIL: "; no interface of this machine has that address",
}

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


class Sockets:
    """Bound sockets, closed together; a Unix socket's file goes with its socket."""

    def __init__(self) -> None:
        self.bound: list[socket.socket] = []
        self._files: list[tuple[Path, int]] = []

    def bind(self, endpoints: Sequence[Endpoint]) -> None:
        """Bind every endpoint. Blocks. Raises RelayError where one cannot be had, and then holds none.

        An IPv6 address is passed over on a machine without IPv6.
        """
        try:
            for endpoint in endpoints:
                self._bind(endpoint)
            if not self.bound:
                raise RelayError("none of listen.address can be bound on this machine")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what is still open and take away the files that are ours. Blocks; may be called again."""
        for one in self.bound:
            one.close()
        for path, inode in self._files:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        self.bound, self._files = [], []

    def _bind(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.path:
                self._bind_unix(Path(endpoint.path))
            else:
                self.bound.append(_bind_tcp(endpoint.host, endpoint.port))
        except OSError as exc:
            where = f"unix:{endpoint.path}" if endpoint.path else _join(endpoint.host, endpoint.port)
            if ":" in endpoint.host and exc.errno in _ABSENT and not _has_ipv6():
                _log.info("address_skipped", address=where, why="this machine has no IPv6")
                return
            hint = _HINTS.get(exc.errno or 0, "")
            raise RelayError(f"listen.address {where} cannot be bound: {exc.strerror}{hint}") from exc

    def _bind_unix(self, path: Path) -> None:
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX)
        try:
            bound.bind(str(path))
            path.chmod(_UNIX_MODE)
        except BaseException:
            bound.close()
            raise
        self._files.append((path, path.stat().st_ino))
        self.bound.append(bound)


def name_of(bound: socket.socket) -> str:
    """Name a bound socket as the configuration would."""
    name = bound.getsockname()
    return _join(*name[:2]) if isinstance(name, tuple) else f"unix:{name}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _has_ipv6() -> bool:
    try:
        _bind_tcp("::1", 0).close()
    except OSError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Take away the socket file of a relay that was killed; any other file stays, and the bind then fails."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _is_listening(path):
            path.unlink()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog would hold us
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
