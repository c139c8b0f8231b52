"""A power cut at any moment loses no acknowledged event; with durability taken out, the same cuts do lose some."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash.powercut import Call, Disk, read_log
from daemon.harness import RELAY, Audit, CountingUpstream, Daemon, Load, envelope, post, running, seeded, wait_until

from relay.commands.witness import split_events
from relay.errors import ChunkCorrupt
from relay.spool.record import decode
from relay.spool.store import FILE_NAME, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

HERE = Path(__file__).parent
EVENTS = 1500
LIVE_IMAGES = 5
SEED = 20261123


@dataclass
class Recording:
    """A run of the relay: what it did to its disk, and when events were acknowledged and delivered."""

    root: Path
    calls: list[Call]
    acked: dict[bytes, int]
    """Event → length of the log when the client had read its 202."""
    delivered: dict[bytes, int]
    """Event → length of the log before upstream's answer to it left."""

    def owed(self, at: int) -> set[bytes]:
        """Events that were acknowledged by then, and not delivered."""
        return {e for e, acked in self.acked.items() if acked <= at and self.delivered.get(e, at + 1) > at}

    def cuts(self, count: int, rng: Random) -> list[int]:
        """Choose moments, as lengths of the log: any, and right after an acknowledgement, which is the harshest."""
        ends = [call.end for call in self.calls]
        first = min(self.acked.values())
        anywhere = rng.choices([end for end in ends if end >= first], k=count - count // 2)
        return sorted(anywhere + rng.choices(list(self.acked.values()), k=count // 2))

    def images(self, cuts: Sequence[int], folder: Path, rng: Random) -> Iterator[tuple[int, Path]]:
        """Give a disk for each cut."""
        disk, upcoming = Disk(self.root), iter(self.calls)
        call = next(upcoming, None)
        for number, at in enumerate(cuts):
            while call is not None and call.end <= at:
                disk.apply(call)
                call = next(upcoming, None)
            image = folder / f"image-{number}"
            disk.write_image(image, rng)
            yield at, image


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("recording system calls needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(HERE / "recorder.c"), "-ldl"], check=True)
    return library


def record(folder: Path, recorder: Path, command: Sequence[str]) -> Recording:
    """Run the relay under load, upstream refusing at times, and kill it."""
    root, log = folder / "queue", folder / "calls"
    root.mkdir(parents=True)
    log.touch()
    watch = os.open(log, os.O_RDONLY)

    def stamp() -> float:
        return os.lseek(watch, 0, os.SEEK_END)

    with CountingUpstream(stamp) as upstream:
        upstream.fail(503, 0.5)
        preload = {"LD_PRELOAD": str(recorder), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
        daemon = Daemon(folder, upstream.url, command=command, environment=preload)
        acked: dict[bytes, int] = {}
        load = Load(daemon.url, threads=3, events_per_request=3, on_ack=lambda events: acked.update(_at(events, stamp)))
        try:
            daemon.start().wait_ready()
            with load.running():
                load.wait_acked(EVENTS // 2)
                upstream.heal()
                load.wait_acked(EVENTS // 2)
                daemon.kill9()
        finally:
            if daemon.alive():
                daemon.kill9()
    os.close(watch)
    delivered: dict[bytes, int] = {}
    for delivery in upstream.accepted:
        for event in delivery.received.events:
            delivered.setdefault(event, int(delivery.at))
    return Recording(root, list(read_log(log)), acked, delivered)


def _at(events: list[bytes], stamp: Callable[[], float]) -> dict[bytes, int]:
    return dict.fromkeys(events, int(stamp()))


def stored(image: Path) -> set[bytes]:
    """Read every event that the relay's own store finds on a disk."""
    folder = image / "spool"
    if not (folder / FILE_NAME).exists():
        return set()
    store = Store(folder, bytes_max=1 << 30)
    try:
        ids = [entry.id for entry in store.entries(0, 1 << 62, 1_000_000)]
        texts = []
        for chunk, (lane, row) in store.read(ids).items():
            with contextlib.suppress(ChunkCorrupt):  # what is salvaged after a weakened setting may hold such
                texts.append(decode(chunk, lane, row).text())
    finally:
        store.close()
    return {event for text in texts for event in split_events(envelope([text]))}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_acknowledged_event_is_lost_in_a_power_cut(
    tmp_path: Path, recorder: Path, pytestconfig: pytest.Config, figure: Callable[[str], None]
) -> None:
    run = record(tmp_path / "run", recorder, RELAY)
    rng = seeded(SEED)
    cuts = run.cuts(pytestconfig.getoption("--crash-images"), rng)
    at_stake = 0
    for number, (at, image) in enumerate(run.images(cuts, tmp_path, rng)):
        owed = run.owed(at)
        at_stake += len(owed)
        found = arrived(image, tmp_path / f"live-{number}") if number < LIVE_IMAGES else stored(image)
        missing = owed - found
        assert not missing, f"cut {number} at {at}, seed {SEED}: {len(missing)} of {len(owed)} acknowledged are gone"
        assert not [*image.rglob("*.damaged-*")], f"cut {number} at {at}, seed {SEED}: taken for damage"
        shutil.rmtree(image)
    assert at_stake > len(cuts), "the cuts put nothing at stake"
    figure(f"power cut by recorded writes: {len(cuts)} images, {at_stake} acknowledged at stake, 0 lost")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_the_sync_of_each_commit_the_same_cuts_lose_events(
    tmp_path: Path, recorder: Path, pytestconfig: pytest.Config, figure: Callable[[str], None]
) -> None:
    run = record(tmp_path / "run", recorder, (sys.executable, str(HERE / "weak_relay.py")))
    rng = seeded(SEED)
    cuts = run.cuts(pytestconfig.getoption("--crash-images"), rng)
    losses = [len(run.owed(at) - stored(image)) for at, image in run.images(cuts, tmp_path, rng)]
    assert sum(loss > 0 for loss in losses) > len(cuts) // 4, losses
    figure(f"negative control: the same, synchronous=NORMAL: {len(cuts)} images, {sum(losses)} lost")


def arrived(image: Path, folder: Path) -> set[bytes]:
    """Start the real relay on a disk and give what it delivers."""
    shutil.copytree(image, folder / "queue")
    with CountingUpstream() as upstream, running(Daemon(folder, upstream.url)) as daemon:
        wait_until("the index is loaded", lambda: not daemon.status().queue.recovering)
        daemon.wait_drained()
        assert Audit.of((), upstream.events).repeated == 0
        return set(upstream.events)


def test_a_disk_keeps_what_was_synced_and_only_that_for_certain(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = str(root / "a").encode()
    disk = Disk(root)
    for call in (
        Call("C", 7, 0, path, 1),
        Call("W", 7, 0, b"s" * 1024, 2),
        Call("S", 7, 0, b"", 3),
        Call("D", 0, 0, str(root).encode(), 4),
        Call("W", 7, 256, b"n" * 1024, 5),
        Call("U", 0, 0, path, 6),
    ):
        disk.apply(call)
    contents = set()
    for number in range(200):
        image = tmp_path / f"{number}"
        disk.write_image(image, seeded(number))
        contents.add((image / "a").read_bytes() if (image / "a").exists() else None)
    assert None in contents, "an unsynced removal may last"
    assert b"s" * 1024 in contents, "an unsynced write may be lost whole"
    assert b"s" * 256 + b"n" * 1024 in contents, "an unsynced write may last whole"
    assert b"s" * 256 + b"n" * 256 + b"s" * 512 in contents, "a write may last in part"
    assert all(content is None or content.startswith(b"s" * 256) for content in contents)


def test_the_recorder_sees_what_a_process_does(tmp_path: Path, recorder: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    script = (
        "import os; os.mkdir('sub'); f = os.open('sub/a', os.O_RDWR | os.O_CREAT); os.write(f, b'one');"
        "os.pwrite(f, b'two', 8); os.ftruncate(f, 4); os.fsync(f); os.fdatasync(f); os.close(f);"
        "os.rename('sub/a', 'sub/b'); d = os.open('sub', os.O_RDONLY); os.fsync(d); os.close(d);"
        "os.close(os.open('sub/b', os.O_WRONLY | os.O_TRUNC)); os.unlink('sub/b')"
    )
    environment = os.environ | {"LD_PRELOAD": str(recorder), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True)
    sub = str(root.resolve() / "sub").encode()
    assert [(call.op, call.offset, call.data) for call in read_log(log)] == [
        ("M", 0, sub),
        ("C", 0, sub + b"/a"),
        ("W", 0, b"one"),
        ("W", 8, b"two"),
        ("T", 4, b""),
        ("S", 0, b""),
        ("S", 0, b""),
        ("R", 0, sub + b"/a\0" + sub + b"/b"),
        ("D", 0, sub),
        ("T", 0, b""),
        ("U", 0, sub + b"/b"),
    ]


def test_the_recorded_calls_rebuild_the_disk_of_the_real_relay(tmp_path: Path, recorder: Path) -> None:
    root, log = tmp_path / "run" / "queue", tmp_path / "run" / "calls"
    root.mkdir(parents=True)
    preload = {"LD_PRELOAD": str(recorder), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
    daemon = Daemon(tmp_path / "run", "http://127.0.0.1:9/v1/log_event", environment=preload)
    with running(daemon):
        assert post(daemon.url, envelope([b'{"eventName":"a"}'])).accepted
        daemon.kill9()
    disk = Disk(root)
    for call in read_log(log):
        disk.apply(call)
    disk.write_image(tmp_path / "image", seeded(1))
    assert len(stored(tmp_path / "image")) == 1
