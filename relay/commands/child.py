"""A relay as a child process below one folder, for the demo: started, asked, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from relay.admin.report import Report
from relay.errors import RelayError

if TYPE_CHECKING:
    from pathlib import Path

    from relay.observe import QueueNumbers

START_SECONDS_MAX: Final = 15.0
STOP_SECONDS_MAX: Final = 10.0
_ASK_EVERY_SECONDS: Final = 0.05
_LOG_LINES_SHOWN: Final = 8


class ChildFailed(RelayError):
    """The relay did not do what it was started for; the text says what, with the end of its log."""


class Child:
    """`relay run` on free ports of 127.0.0.1, its configuration, queue and log in `folder`."""

    def __init__(self, folder: Path, upstream_url: str, session: aiohttp.ClientSession) -> None:
        self.queue_folder = folder / "queue"
        self._config_file = folder / "relay.toml"
        self._log_file = folder / "relay.log"
        self._upstream_url = upstream_url
        self._session = session
        self._process: asyncio.subprocess.Process | None = None
        port, admin_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.admin_address = f"127.0.0.1:{admin_port}"
        self.url = f"http://{self.address}/v1/log_event"
        self.admin_url = f"http://{self.admin_address}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> float:
        """Start it and wait until it can accept events; gives the seconds that took.

        Raises ChildFailed where it ends, or is not ready in time.
        """
        began = time.monotonic()
        await asyncio.to_thread(self._config_file.write_text, self._config())
        log = await asyncio.to_thread(self._log_file.open, "ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "relay", "run", "--config", str(self._config_file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
                start_new_session=True,  # Ctrl-C is for the demo; it ends its child itself
            )
        while not await self._is_ready():
            ended = self._process.returncode is not None
            if ended or time.monotonic() - began > START_SECONDS_MAX:
                what = f"ended with code {self._process.returncode}" if ended else "is not ready"
                raise ChildFailed(f"the relay {what}; the end of its log:\n{await self.log_end()}")
            await asyncio.sleep(_ASK_EVERY_SECONDS)
        return time.monotonic() - began

    async def stop(self) -> None:
        """Ask it to stop, and end it where it does not; nothing is left running."""
        await self._end(signal.SIGTERM, STOP_SECONDS_MAX)
        await self.kill()

    async def kill(self) -> None:
        """End it at once, as the out-of-memory killer does."""
        await self._end(signal.SIGKILL, STOP_SECONDS_MAX)

    async def queue(self) -> QueueNumbers:
        """Ask for the queue's numbers, as of now."""
        async with self._session.get(f"{self.admin_url}/status") as answer:
            return msgspec.json.decode(await answer.read(), type=Report).snapshot.queue

    async def wait_drained(self, seconds: float) -> bool:
        """Wait until nothing is queued any more; False where that takes longer."""
        deadline = time.monotonic() + seconds
        while (await self.queue()).events:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_ASK_EVERY_SECONDS)
        return True

    async def log_end(self) -> str:
        """Give the last lines the relay wrote."""
        lines = (await asyncio.to_thread(self._log_file.read_text)).splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LOG_LINES_SHOWN:])

    async def _is_ready(self) -> bool:
        with suppress(aiohttp.ClientError):
            async with self._session.get(f"{self.admin_url}/readyz") as answer:
                return answer.ok
        return False

    async def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)

    def _config(self) -> str:
        return "\n".join(
            (
                f'listen.address = "{self.address}"',
                f"queue.directory = {json.dumps(str(self.queue_folder))}",
                f'upstream.url = "{self._upstream_url}"',
                "upstream.retry_seconds_min = 0.2",
                "upstream.retry_seconds_max = 1",
                f'admin.address = "{self.admin_address}"',
                "shutdown.drain_seconds_max = 2",
                'log.format = "console"',
                "",
            )
        )


def free_ports(count: int) -> list[int]:
    """Give TCP ports of 127.0.0.1 that are free now, each another."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
