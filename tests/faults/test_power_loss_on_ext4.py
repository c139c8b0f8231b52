"""The power of a real ext4 disk cut under load, by the file system's own shutdown: nothing acknowledged is lost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon.harness import RELAY, Audit, seeded, wait_until
from faults.mounts import loop_disk, needs_root
from faults.rig import BATCH_EVENTS_MAX, IN_FLIGHT_MAX, Row, trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = [needs_root, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]

WEAK = (sys.executable, str(Path(__file__).parents[1] / "crash" / "weak_relay.py"))


def cut_again_and_again(
    folder: Path, command: Sequence[str], rounds: int, *, upstream_down: bool
) -> tuple[Audit, float]:
    """Cut the power under load, mount the disk again and start; gives what became of the events."""
    rng = seeded(rounds)
    with (
        loop_disk(folder / "queue", 128 << 20) as disk,
        trial(folder, command=command, upstream_down=upstream_down) as one,
    ):
        for _ in range(rounds):
            one.load.wait_acked(150)
            time.sleep(rng.random() * 0.5)
            disk.cut_power()
            time.sleep(0.2)  # what is answered 202 now was never on disk
            one.daemon.kill9()
            disk.unmount()
            disk.mount()
            began = time.monotonic()
            one.daemon.start().wait_ready()
            one.recover(began)
        one.quiet()
        wait_until("the index is loaded", lambda: not one.daemon.status().queue.recovering)
        one.upstream.open() if upstream_down else None
        return one.audit(), one.recovery_seconds


@pytest.mark.parametrize("upstream_down", [True, False], ids=["upstream down", "upstream up"])
def test_a_power_cut_of_a_real_disk_loses_nothing(
    tmp_path: Path, tell: Callable[[Row], None], pytestconfig: pytest.Config, *, upstream_down: bool
) -> None:
    rounds = max(2, pytestconfig.getoption("--crash-rounds") // 7)
    audit, seconds = cut_again_and_again(tmp_path, RELAY, rounds, upstream_down=upstream_down)
    assert audit.lost == 0
    assert audit.repeated <= (0 if upstream_down else rounds * IN_FLIGHT_MAX * BATCH_EVENTS_MAX)
    tell(Row(f"ext4 shut down, upstream {'down' if upstream_down else 'up'}", rounds, audit, seconds))


def test_without_the_sync_of_each_commit_the_same_power_cuts_lose_events(
    tmp_path: Path, tell: Callable[[Row], None]
) -> None:
    audit, seconds = cut_again_and_again(tmp_path, WEAK, 2, upstream_down=True)
    assert audit.lost > 0
    tell(Row("negative control: ext4 shut down, synchronous=NORMAL", 2, audit, seconds))
