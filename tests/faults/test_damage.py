"""Files damaged between two runs, and moved away or replaced under a running relay."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import seeded, wait_until
from faults.rig import Row, trial

from relay.spool.table import FILE_NAME, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from daemon.harness import Daemon


def damage_pages(file: Path, rng: Random) -> None:
    """Write garbage over some pages, the first one now and then among them."""
    with file.open("r+b") as opened:
        pages = max(1, file.stat().st_size // PAGE_BYTES)
        for _ in range(rng.randint(1, 1 + pages // 50)):
            opened.seek(rng.randrange(pages) * PAGE_BYTES + rng.choice((0, rng.randrange(PAGE_BYTES))))
            opened.write(rng.randbytes(rng.choice((1, 512, PAGE_BYTES))))


def truncate(file: Path, rng: Random) -> None:
    with file.open("r+b") as opened:
        opened.truncate(rng.randrange(file.stat().st_size + 1))


DAMAGE: dict[str, tuple[Callable[[Path, Random], None], str]] = {
    "pages of the database": (damage_pages, FILE_NAME),
    "the database truncated": (truncate, FILE_NAME),
    "pages of the log": (damage_pages, FILE_NAME + "-wal"),
    "the log truncated": (truncate, FILE_NAME + "-wal"),
}


def announced(daemon: Daemon) -> tuple[int, int]:
    """Give the events that the relay says are lost, and the stretches of which it cannot say how much they held."""
    metrics = daemon.metrics()
    events = metrics.total("dead_letter_events") + metrics.total("dropped_events_total", reason="corrupt")
    lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    mends = [line for line in lines if line["event"] == "queue_file_salvaged"]
    return int(events), sum(line["lost_ranges"] + line["lost_frames"] + bool(line["failure"]) for line in mends)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_between_two_runs_never_blocks_a_start_and_the_rest_is_delivered(
    tmp_path: Path, name: str, tell: Callable[[Row], None], pytestconfig: pytest.Config
) -> None:
    rounds = max(2, pytestconfig.getoption("--crash-rounds") // 10)
    harm, file_name = DAMAGE[name]
    rng = seeded(len(name))
    start_seconds = 0.0
    with trial(tmp_path, upstream_down=True, pad_bytes=3000) as one:
        for _ in range(rounds):
            one.load.wait_acked(700)
            one.daemon.kill9()
            harm(one.daemon.queue_folder / "spool" / file_name, rng)
            began = time.monotonic()
            one.daemon.start().wait_ready()
            start_seconds = max(start_seconds, time.monotonic() - began)
            one.recover(began)
        one.quiet()
        one.upstream.open()
        audit = one.audit()
        events, stretches = announced(one.daemon)
    assert audit.repeated == 0
    assert audit.lost < audit.acked, "nothing at all arrived"
    assert audit.lost == 0 or events or stretches or name == "the database truncated"
    # SQLite takes a damaged frame for the end of the log: of what lies behind it nothing may be lost.
    assert name != "pages of the log" or audit.lost <= audit.acked // 4
    strangers = set(one.upstream.events) - {*one.load.made, *one.watch.made}
    assert not strangers, "damaged bytes were delivered"
    more = f"announced {events} and {stretches} stretches; start {start_seconds:.1f} s"
    tell(Row(f"damage: {name}", rounds, audit, one.recovery_seconds, more))


def unlink(file: Path) -> None:
    file.unlink()


def move_away(file: Path) -> None:
    file.rename(file.with_name("moved"))


def replace_by_a_copy(file: Path) -> None:
    shutil.copyfile(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


def replace_by_nothing(file: Path) -> None:
    file.with_name("empty").touch()
    file.with_name("empty").replace(file)


@pytest.mark.parametrize("harm", [unlink, move_away, replace_by_a_copy, replace_by_nothing])
@pytest.mark.parametrize("name", [FILE_NAME, FILE_NAME + "-wal"])
def test_a_file_taken_away_underneath_is_noticed_and_nothing_is_lost(
    tmp_path: Path, harm: Callable[[Path], None], name: str, tell: Callable[[Row], None]
) -> None:
    with trial(tmp_path, upstream_down=True) as one:
        one.load.wait_acked(300)
        harm(one.daemon.queue_folder / "spool" / name)
        began = time.monotonic()
        wait_until("it is noticed", lambda: "queue_file_salvaged" in one.daemon.log, seconds=5)
        noticed = time.monotonic() - began
        one.recover(began)
        one.load.wait_acked(100)
        one.daemon.kill9()
        one.daemon.start().wait_ready()
        one.quiet()
        one.upstream.open()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(f"{name}: {harm.__name__}", 1, audit, one.recovery_seconds, f"noticed in {noticed:.1f} s"))


@pytest.mark.parametrize("left", [FILE_NAME, FILE_NAME + "-wal"])
def test_a_start_without_the_database_or_without_its_log_is_not_blocked(tmp_path: Path, left: str) -> None:
    """A database that is made of a log left alone lacks what never was in the log, keys of lanes too."""
    with trial(tmp_path, settings={"shutdown": {"drain_seconds_max": 0.1}}, upstream_down=True) as one:
        one.load.wait_acked(300)
        one.daemon.sigterm()
        one.daemon.start().wait_ready()
        one.load.wait_acked(300)
        one.daemon.kill9()
        for name in {FILE_NAME, FILE_NAME + "-wal"} - {left}:
            (one.daemon.queue_folder / "spool" / name).unlink()
        restarted = time.monotonic()
        one.daemon.start().wait_ready()
        one.recover(restarted)
        one.load.wait_acked(300)
        one.quiet()
        taken = one.load.acked[-100:]
        one.upstream.open()
        wait_until("new events arrive", lambda: set(taken) <= set(one.upstream.events))
        assert not set(one.upstream.events) - {*one.load.made, *one.watch.made}, "damaged bytes were delivered"
        one.daemon.metrics().check_conservation()
