"""What systemd and we say to each other: readiness and watchdog out, sockets held over a restart in (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_SOCKET: Final = 3


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell the supervisor, `READY=1` for instance; False where nobody listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often the supervisor wants a sign of life at least; None where it asks for none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None


def inherited_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that the supervisor opened and handed to this process; empty without any."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    handed = [socket.socket(fileno=_FIRST_SOCKET + at) for at in range(int(count))]
    for one in handed:
        one.set_inheritable(False)
        one.setblocking(False)
    return handed
