"""Asks the relay that holds a folder; blocking."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from relay.control.protocol import SOCKET_NAME, Progress, Refused, decode_reply, encode_request
from relay.control.server import short_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from relay.control.protocol import Done, LaneList, Request

ANSWER_SECONDS_MAX: Final = 60.0
"""Between two lines of an answer: a commit on a slow disk, or several."""


def ask(folder: Path, request: Request, progress: Callable[[Progress], None]) -> Done | LaneList | Refused | None:
    """Give the relay's answer; None where none listens in this folder."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(ANSWER_SECONDS_MAX)
        try:
            with short_name(folder, SOCKET_NAME) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        try:
            connection.sendall(encode_request(request))
            with connection.makefile("rb") as lines:
                for line in lines:
                    reply = decode_reply(line)
                    if not isinstance(reply, Progress):
                        return reply
                    progress(reply)
        except OSError as exc:
            return Refused("disconnected", f"the relay stopped answering ({exc}); what it had done by then stays done")
    return Refused("disconnected", "the relay hung up; what it had done by then stays done")
