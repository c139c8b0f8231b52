"""kill -9 of the real daemon under load, again and again: nothing acknowledged is lost, almost nothing comes twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import Audit, CountingUpstream, Daemon, Load, running, seeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IN_FLIGHT_MAX, BATCH_EVENTS_MAX = 4, 100
SETTINGS = {"upstream": {"in_flight_max": IN_FLIGHT_MAX, "batch_events_max": BATCH_EVENTS_MAX}}
COMMIT_SECONDS = 0.5
"""What was delivered this long before a kill has its acknowledgement on disk, even on a slow machine."""


def kill_again_and_again(daemon: Daemon, load: Load, rounds: int) -> list[float]:
    """Kill and restart under load; gives the moments of the kills."""
    rng = seeded(rounds)
    kills = []
    with load.running():
        for number in range(rounds):
            load.wait_acked(50)
            time.sleep(rng.random() * 0.3)
            if number % 5 == 0:
                daemon.metrics().check_conservation()
            daemon.kill9()
            kills.append(time.monotonic())
            daemon.start().wait_ready()
        load.wait_acked(50)
    return kills


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_upstream_up_nothing_is_lost_and_only_what_was_in_flight_comes_twice(
    tmp_path: Path, pytestconfig: pytest.Config, figure: Callable[[str], None]
) -> None:
    rounds = pytestconfig.getoption("--crash-rounds")
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url, settings=SETTINGS)) as daemon:
        load = Load(daemon.url, name="up")
        kills = kill_again_and_again(daemon, load, rounds)
        daemon.wait_drained()
        audit = Audit.of(load.acked, upstream.events)
    assert audit.acked >= 50 * rounds
    assert audit.lost == 0
    assert audit.repeated <= rounds * IN_FLIGHT_MAX * BATCH_EVENTS_MAX
    first_seen: dict[bytes, float] = {}
    for delivery in upstream.accepted:
        for event in delivery.received.events:
            first_seen.setdefault(event, delivery.at)
    settled = [
        event
        for event in audit.duplicates
        if not any(kill - COMMIT_SECONDS <= first_seen[event] <= kill + COMMIT_SECONDS for kill in kills)
    ]
    assert not settled, f"{len(settled)} events came twice that no kill caught in flight"
    figure(f"kill -9, {rounds} rounds with upstream up: {audit.acked} acknowledged, 0 missing, {audit.repeated} twice")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_upstream_down_nothing_is_lost_and_nothing_comes_twice(
    tmp_path: Path, pytestconfig: pytest.Config, figure: Callable[[str], None]
) -> None:
    rounds = pytestconfig.getoption("--crash-rounds")
    with CountingUpstream() as upstream:
        upstream.close()
        with running(Daemon(tmp_path, upstream.url, settings=SETTINGS)) as daemon:
            load = Load(daemon.url, name="down")
            kill_again_and_again(daemon, load, rounds)
            daemon.wait_counted()
            assert daemon.queued() >= len(load.acked)
            upstream.open()
            daemon.wait_drained(60)
            audit = Audit.of(load.acked, upstream.events)
    assert audit.acked >= 50 * rounds
    assert (audit.lost, audit.repeated) == (0, 0)
    figure(f"kill -9, {rounds} rounds with upstream down: {audit.acked} acknowledged, 0 missing, 0 twice")
