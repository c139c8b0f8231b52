"""The daemon's life: every room opened in order, one TaskGroup while it runs, every room closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import structlog

from relay import __version__, keyfile, systemd
from relay.admin.server import AdminServer
from relay.app import heap, snapshot
from relay.app.stopping import Stop
from relay.control import ControlServer, Verbs
from relay.errors import ConfigError
from relay.forwarder.loop import Forwarder
from relay.forwarder.upstream import Upstream
from relay.listener import Door, Listener
from relay.listener.door import Limits
from relay.logs import set_level
from relay.observe import Observer, Snapshot
from relay.spool.folder import Folder, hold
from relay.spool.spool import DiskSpool
from relay.spool.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.config import Config
    from relay.forwarder.body import Compression
    from relay.forwarder.delivery import Success

CHUNK_EVENTS_MAX: Final = 1000
CHUNK_BYTES_MAX: Final = 512 * 1024
LAG_PROBE_SECONDS: Final = 0.5
TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where a container says its last word."""

_log = structlog.get_logger()


async def serve(config: Config, reload: Callable[[], Config] | None = None) -> int:
    """Run until told to stop; gives the exit code. Raises RelayError where a room cannot be opened.

    On SIGHUP the key files are read at once, and the log's level is taken from what `reload` gives; all else of a
    configuration needs a restart.
    """
    heap.keep_freed_memory()
    stop = Stop()
    stop.listen_for_signals()
    async with AsyncExitStack() as rooms:
        daemon = Daemon(config, stop, reload or (lambda: config))
        await daemon.open(rooms)
        await daemon.run()
    await daemon.last_word()
    return 0 if stop.failure is None else 1


class Daemon:
    """All rooms of one process; `live`, `ready` and `started` answer the probes, None where all is well."""

    def __init__(self, config: Config, stop: Stop, reload: Callable[[], Config]) -> None:
        self._config = config
        self._stop = stop
        self._reload = reload
        self._hung_up = asyncio.Event()
        # From the first moment, for the default is to die of it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up.set)
        self._observer = Observer()
        self._started_at = time.time()
        self._upstream_host = urlsplit(config.upstream.url).netloc.rpartition("@")[2]
        self._allowed = (
            keyfile.KeyFile(config.listen.api_keys_allowed_file) if config.listen.api_keys_allowed_file else None
        )
        self._default_key = keyfile.KeyFile(config.upstream.api_key_file) if config.upstream.api_key_file else None
        self._listening: list[str] = []
        self._spool: DiskSpool | None = None
        self._forwarder: Forwarder | None = None
        self._draining = False

    # -- probes and numbers -------------------------------------------------------------------------------------------

    def live(self) -> str | None:
        """The loop answers, for we are here; the thread that commits must exist. A slow disk is never unhealthy."""
        if self._spool is not None and not self._draining and not self._spool.writer_alive():
            return "the thread that writes the queue has died"
        return None

    def ready(self) -> str | None:
        """Events can be made durable now; upstream's health never matters."""
        if self._spool is None:
            return "the queue is still opening"
        return "draining" if self._draining else self.live() or self._spool.not_ready()

    def started(self) -> str | None:
        """The listener answers, be it 503."""
        return None if self._listening else "the listener is not open yet"

    def snapshot(self) -> Snapshot:
        """Everything an operator may ask for, now."""
        now = time.time()
        if self._spool is None or self._forwarder is None:
            return snapshot.starting(now=now, started_at=self._started_at, upstream=self._upstream_host)
        return snapshot.gather(
            self._spool,
            self._forwarder,
            now=now,
            started_at=self._started_at,
            upstream=self._upstream_host,
            phase="draining" if self._draining else "running",
            disk_free_bytes_min=self._config.queue.disk_free_bytes_min,
        )

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self, rooms: AsyncExitStack) -> None:
        """Open every room; `rooms` closes whatever was opened, in reverse, also when a later one fails."""
        folder = await asyncio.to_thread(hold, self._config.queue.directory)
        rooms.callback(folder.close)
        await self._load_keys()
        decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        rooms.callback(decoders.shutdown, wait=False)
        self._door = self._make_door(decoders)
        self._listener = Listener(self._door, connections_max=self._config.listen.connections_max)
        rooms.push_async_callback(self._listener.close, 0.0)
        self._listening = await self._listener.open(self._config.listen.address, systemd.inherited_sockets())
        admin = AdminServer(observer=self._observer, source=self.snapshot, health=self)
        rooms.push_async_callback(admin.close)
        await admin.open(self._config.admin.address)
        self._spool = await self._open_spool(folder)
        rooms.push_async_callback(self._spool.close)
        upstream = self._make_upstream()
        await rooms.enter_async_context(upstream)
        self._forwarder = self._make_forwarder(self._spool, upstream)
        self._spool.bound_share_of(self._forwarder.is_held_back)
        await self._open_control(rooms, folder, self._spool, self._forwarder)
        self._door.open_to(self._spool)
        if folder.volatile:
            _log.warning(
                "queue_is_volatile", directory=str(folder.path), why="a memory file system: a reboot loses the queue"
            )
        _log.info(
            "started",
            version=__version__,
            listening=self._listening,
            admin=str(self._config.admin.address),
            upstream=self._upstream_host,
            queue=str(folder.path),
        )

    async def run(self) -> None:
        """Serve until asked to stop, then drain and let everybody be answered."""
        assert self._spool is not None
        assert self._forwarder is not None
        gc.collect()
        gc.freeze()  # what start-up made will not die: spare the collector from walking it
        async with asyncio.TaskGroup() as group:
            forwarding = group.create_task(self._forwarder.run(), name="forwarder")
            tasks = [
                group.create_task(self._watch_loop(), name="loop-lag"),
                group.create_task(self._follow_keys(), name="key-files"),
                group.create_task(self._follow_hangups(), name="reload"),
            ]
            systemd.notify("READY=1")
            await self._stop.asked.wait()
            systemd.notify("STOPPING=1")
            await self._drain(self._forwarder)
            for task in (forwarding, *tasks):
                task.cancel()

    async def last_word(self) -> None:
        """Say what is left on disk, in the log and where the container's supervisor reads it."""
        assert self._spool is not None
        left = self._spool.stats().events
        _log.info("stopped", undelivered_events=left)
        await asyncio.to_thread(_tell_supervisor, self._stop.last_word(left))

    async def _drain(self, forwarder: Forwarder) -> None:
        """Deliver what can be delivered in time while apps still post; then close the front door."""
        self._draining = True
        seconds_max = self._config.shutdown.drain_seconds_max
        self._listener.drain()
        if self._stop.failure is None:
            await self._stop.unless_hurried(forwarder.drain(seconds_max))
        await self._listener.close(self._config.listen.answer_seconds_max)

    # -- rooms --------------------------------------------------------------------------------------------------------

    def _make_door(self, decoders: ThreadPoolExecutor) -> Door:
        listen, upstream = self._config.listen, self._config.upstream
        limits = Limits(
            request_bytes_max=listen.request_bytes_max,
            inflated_bytes_max=listen.inflated_bytes_max,
            event_bytes_max=listen.event_bytes_max,
            events_per_request_max=listen.events_per_request_max,
            envelope_bytes_max=listen.envelope_bytes_max,
            memory_bytes_max=listen.memory_bytes_max,
            body_seconds_max=listen.body_seconds_max,
            answer_seconds_max=listen.answer_seconds_max,
            chunk_events_max=min(CHUNK_EVENTS_MAX, upstream.batch_events_max),
            chunk_bytes_max=min(CHUNK_BYTES_MAX, upstream.batch_bytes_max),
        )
        return Door(
            paths=listen.paths,
            limits=limits,
            cors_origins=listen.cors_origins,
            strip_private_attributes=listen.strip_private_attributes,
            suppress_resends=listen.suppress_resends,
            allowed_keys=lambda: None if self._allowed is None else self._allowed.keys,
            keyless_taken=self._default_key is not None,
            observer=self._observer,
            now_ms=_now_ms,
            decoders=decoders,
        )

    async def _open_spool(self, folder: Folder) -> DiskSpool:
        queue, upstream = self._config.queue, self._config.upstream
        store = await asyncio.to_thread(Store, folder.path, bytes_max=queue.bytes_max)
        spool = DiskSpool(
            folder,
            store,
            chunk_events_max=min(CHUNK_EVENTS_MAX, upstream.batch_events_max),
            chunk_bytes_max=min(CHUNK_BYTES_MAX, upstream.batch_bytes_max),
            disk_free_bytes_min=queue.disk_free_bytes_min,
            lanes_max=queue.lanes_max,
            lane_bytes_share_max=queue.lane_bytes_share_max,
            dead_letter_bytes_max=queue.dead_letter_bytes_max,
            now_ms=_now_ms,
            committed=self._observer.commit_ended,
            failed=self._stop.fail,
        )
        await spool.open()
        return spool

    async def _open_control(
        self, rooms: AsyncExitStack, folder: Folder, spool: DiskSpool, forwarder: Forwarder
    ) -> None:
        verbs = Verbs(spool, delivery=forwarder, standings=lambda: forwarder.numbers().lanes, now_ms=_now_ms)
        verbs.restore_pauses()
        control = ControlServer(folder.path, verbs)
        rooms.push_async_callback(control.close)
        await control.open()

    def _make_upstream(self) -> Upstream:
        upstream = self._config.upstream
        return Upstream(
            url=upstream.url,
            timeout_seconds=upstream.timeout_seconds,
            connect_seconds_max=upstream.connect_seconds_max,
            proxy=upstream.proxy or "",
            ca_file=str(upstream.ca_file or ""),
            client_cert_file=str(upstream.client_cert_file or ""),
            client_key_file=str(upstream.client_key_file or ""),
        )

    def _make_forwarder(self, spool: DiskSpool, upstream: Upstream) -> Forwarder:
        settings = self._config.upstream
        return Forwarder(
            spool=spool,
            upstream=upstream,
            observer=self._observer,
            default_key=lambda: self._default_key.first if self._default_key is not None else None,
            host=self._upstream_host,
            monotonic=asyncio.get_running_loop().time,
            wall=time.time,
            random=random.random,
            batch_events_max=settings.batch_events_max,
            batch_bytes_max=settings.batch_bytes_max,
            in_flight_max=settings.in_flight_max,
            retry_seconds_min=settings.retry_seconds_min,
            retry_seconds_max=settings.retry_seconds_max,
            park_probe_seconds=settings.park_probe_seconds,
            success=cast("Success", settings.success),
            compression=cast("Compression", settings.compression),
            events_per_second_max=settings.events_per_second_max,
            age_seconds_max=self._config.queue.age_max,
        )

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def _watch_loop(self) -> None:
        """Measure how late the loop wakes, and show systemd that it lives."""
        loop, watchdog = asyncio.get_running_loop(), systemd.watchdog_seconds()
        pinged_at = 0.0
        while True:
            due = loop.time() + LAG_PROBE_SECONDS
            await asyncio.sleep(LAG_PROBE_SECONDS)
            self._observer.loop_lagged(max(0.0, loop.time() - due))
            if watchdog is not None and loop.time() - pinged_at > watchdog / 3 and self.live() is None:
                systemd.notify("WATCHDOG=1")
                pinged_at = loop.time()

    async def _load_keys(self) -> None:
        for file in (self._allowed, self._default_key):
            if file is not None:
                try:
                    await asyncio.to_thread(file.load)
                except OSError as exc:
                    _log.warning("key_file_unreadable", path=str(file.path), error=exc.strerror)

    async def _follow_hangups(self) -> None:
        """Read secrets and the log's level again at each SIGHUP; a configuration that is wrong changes nothing."""
        while True:
            await self._hung_up.wait()
            self._hung_up.clear()
            await self._load_keys()
            if self._forwarder is not None:
                self._forwarder.key_changed()
            try:
                level = (await asyncio.to_thread(self._reload)).log.level
            except ConfigError as exc:
                _log.error("reload_refused", problems=exc.problems)
                continue
            set_level(level)
            _log.info("reloaded", log_level=level)

    async def _follow_keys(self) -> None:
        assert self._forwarder is not None
        async with asyncio.TaskGroup() as group:
            if self._allowed is not None:
                group.create_task(keyfile.follow(self._allowed, lambda: None), name="allowed-keys")
            if self._default_key is not None:
                group.create_task(keyfile.follow(self._default_key, self._forwarder.key_changed), name="default-key")


def _tell_supervisor(word: str) -> None:
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(word)


def _key_file(path: Path | None) -> keyfile.KeyFile | None:
    return None if path is None else keyfile.KeyFile(path)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
