"""`relay demo`: shows an event accepted, on disk and delivered; with `--outage`, that none is lost in one."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
import time
from collections import Counter
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from relay.commands import reference
from relay.commands.child import Child, ChildFailed, free_ports
from relay.commands.sink import Received, Sink
from relay.config import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "demo"
HELP = "relay, stand-in upstream and one event between them, with nothing to set up"

OUTAGE_REQUESTS: Final = 50
OUTAGE_EVENTS_PER_REQUEST: Final = 10
DELIVERY_SECONDS_MAX: Final = 15.0
_EXAMPLE: Final = """\
examples:
  relay demo             one event: accepted, on disk, delivered; the status page stays up until Ctrl-C
  relay demo --outage    upstream down, queue fills, kill -9, restart, drain, the count
  relay demo --no-wait   the same and out, for scripts: exit 0 only if everything was as promised
"""


class Stage:
    """What a show needs: the stand-in upstream with what it received, and the relay in front of it."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession) -> None:
        self.arrived: list[bytes] = []
        self.folder = folder
        self.sink = Sink(self._receive)
        self.session = session
        self._address = Address("127.0.0.1", free_ports(1)[0])
        self._more = asyncio.Event()
        self.relay = Child(folder, f"http://{self._address}/v1/log_event", session)

    async def open_upstream(self) -> None:
        """Let the stand-in listen."""
        await self.sink.start(self._address)

    async def send(self, body: bytes) -> tuple[int, bytes, float]:
        """Send a body to the relay; gives status, answer and seconds."""
        began = time.perf_counter()
        async with self.session.post(self.relay.url, data=body, headers=reference.headers(_now_ms())) as answer:
            return answer.status, await answer.read(), time.perf_counter() - began

    async def wait_more(self) -> None:
        """Wait until further events arrive."""
        self._more.clear()
        await self._more.wait()

    async def wait_arrived(self, count: int) -> None:
        """Wait until so many events arrived; raises ChildFailed where they do not."""
        try:
            async with asyncio.timeout(DELIVERY_SECONDS_MAX):
                while len(self.arrived) < count:
                    await self.wait_more()
        except TimeoutError:
            what = f"{len(self.arrived)} of {count} events arrived in {DELIVERY_SECONDS_MAX:.0f} s"
            raise ChildFailed(f"{what}; the end of the relay's log:\n{await self.relay.log_end()}") from None

    def _receive(self, received: Received) -> None:
        if not received.detail:
            self.arrived.extend(received.events)
            self._more.set()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLE
    parser.add_argument("--outage", action="store_true", help="rehearse an outage of upstream and a kill -9 in it")
    parser.add_argument("--no-wait", action="store_true", help="end after the show")


def run(arguments: argparse.Namespace) -> int:
    """Give the show; 0 after it or Ctrl-C, 1 where something was not as promised."""
    return asyncio.run(_main(outage=arguments.outage, wait=not arguments.no_wait))


async def _main(*, outage: bool, wait: bool) -> int:
    show = asyncio.create_task(_show(outage=outage, wait=wait))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, show.cancel)
    try:
        return await show
    except asyncio.CancelledError:  # by a signal: everything is closed and removed by now
        print("\n  Stopped, and tidied up.")
        return 0


async def _show(*, outage: bool, wait: bool) -> int:
    async with _stage() as stage:
        right = await (_outage(stage) if outage else _one_event(stage))
        _say_where(stage)
        if wait:
            await _stay_up(stage)
        return 0 if right else 1


@asynccontextmanager
async def _stage() -> AsyncIterator[Stage]:
    """Set the stage in a temporary folder; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            stage = Stage(Path(folder), session)
            try:
                yield stage
            finally:
                stage.sink.release()
                await stage.relay.stop()
                await stage.sink.stop()


# ── one event ──


async def _one_event(stage: Stage) -> bool:
    print("relay demo: an app's event, the relay, and a stand-in for Statsig\n")
    await stage.open_upstream()
    await stage.relay.start()
    stage.sink.hold()
    status, answer, seconds = await stage.send(reference.body(_now_ms(), "SKU-12345"))
    _say("accepted", f"{status} {answer.decode()} in {seconds * 1000:.1f} ms")
    on_disk, stripped = await _look_at_disk(stage)
    stage.sink.release()
    began = time.perf_counter()
    await stage.wait_arrived(1)
    drained = await stage.relay.wait_drained(DELIVERY_SECONDS_MAX)
    seconds = time.perf_counter() - began
    _say(
        "delivered",
        f"gone from the queue {seconds * 1000:.0f} ms after the stand-in was let go: {len(stage.arrived)} arrived",
    )
    _say("", json.dumps(json.loads(stage.arrived[0]), separators=(",", ":"))[:180] + "…")
    return all((status == HTTPStatus.ACCEPTED, on_disk, stripped, drained, len(stage.arrived) == 1))


async def _look_at_disk(stage: Stage) -> tuple[bool, bool]:
    """Say what lies in the queue folder: whether the event does, and whether what is private does not."""
    queued = (await stage.relay.queue()).events
    files = await asyncio.to_thread(_read_files, stage.relay.queue_folder)
    holders = [path for path, data in files.items() if b"SKU-12345" in data]
    stripped = not any(reference.PRIVATE_VALUE.encode() in data for data in files.values())
    where = f"its bytes lie in {holders[0]}" if holders else "its bytes lie nowhere: that is a bug"
    _say("on disk", f"{queued} event queued while the stand-in is held back; {where}")
    _say(
        "", f"its privateAttributes {'were taken out before the disk' if stripped else 'are there too: that is a bug'}"
    )
    return queued == 1 and bool(holders), stripped


def _read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ── an outage ──


async def _outage(stage: Stage) -> bool:
    total = OUTAGE_REQUESTS * OUTAGE_EVENTS_PER_REQUEST
    print("relay demo --outage: Statsig is down, and then the relay is killed too\n")
    await stage.relay.start()
    _say("upstream", "down: it refuses connections")
    answers = [await stage.send(_numbered(n)) for n in range(OUTAGE_REQUESTS)]
    accepted = sum(status == HTTPStatus.ACCEPTED for status, _, _ in answers) * OUTAGE_EVENTS_PER_REQUEST
    slowest = max(seconds for _, _, seconds in answers)
    _say(
        "accepted", f"{accepted} events in {OUTAGE_REQUESTS} requests, the slowest answer after {slowest * 1000:.1f} ms"
    )
    _say("on disk", f"{(await stage.relay.queue()).events} events queued")
    pid = stage.relay.pid
    await stage.relay.kill()
    _say("kill -9", f"process {pid} is gone, without a last word")
    seconds = await stage.relay.start()
    recovered = (await stage.relay.queue()).recovered_events
    _say("restart", f"ready after {seconds:.2f} s; {recovered} events recovered from disk")
    await stage.open_upstream()
    began = time.perf_counter()
    await stage.wait_arrived(total)
    drained = await stage.relay.wait_drained(DELIVERY_SECONDS_MAX)
    _say("upstream", f"up again: the queue drained in {time.perf_counter() - began:.1f} s")
    return _count(stage, accepted) and drained and accepted == total


def _count(stage: Stage, accepted: int) -> bool:
    numbers = Counter(json.loads(event)["value"] for event in stage.arrived)
    lost, twice = accepted - len(numbers), sum(numbers.values()) - len(numbers)
    _say("the count", f"{accepted} accepted, {len(numbers)} delivered, {lost} lost, {twice} delivered twice")
    return lost == 0 and twice == 0


def _numbered(request: int) -> bytes:
    """Give a request whose events each bear a number of their own."""
    first = request * OUTAGE_EVENTS_PER_REQUEST
    numbers = range(first, first + OUTAGE_EVENTS_PER_REQUEST)
    events = [{"eventName": "purchase", "value": f"order-{n}", "time": _now_ms()} for n in numbers]
    return json.dumps({"events": events, "user": {"userID": "demo"}}).encode()


# ── saying it ──


async def _stay_up(stage: Stage) -> None:
    print("\n  Ctrl-C ends the demo and removes its folder. Events you send are shown here:", flush=True)
    shown = len(stage.arrived)
    while True:
        for event in stage.arrived[shown:]:
            _say("delivered", event.decode(errors="replace"))
        shown = len(stage.arrived)
        await stage.wait_more()


def _say_where(stage: Stage) -> None:
    print()
    _say("status page", f"{stage.relay.admin_url}/")
    _say("metrics", f"{stage.relay.admin_url}/metrics")
    _say("folder", str(stage.folder))
    event = '{"events":[{"eventName":"hello"}]}'
    _say("try it", f"curl -i {stage.relay.url} -H 'statsig-api-key: {reference.API_KEY}' -d '{event}'")


def _say(title: str, text: str) -> None:
    print(f"  {title:<12} {text}", flush=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
