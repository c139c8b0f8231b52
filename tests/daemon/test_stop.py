"""SIGTERM with little time left, with plenty, and with the app gone or still sending: nothing acknowledged is lost."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import Audit, CountingUpstream, Daemon, Load, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

LITTLE_SECONDS, PLENTY_SECONDS = 2.0, 8.0
SLACK_SECONDS = 1.0
"""Past the drain: the last answers, the last commit, and a machine of two cores."""
UPSTREAM_SECONDS = 0.2
SLOW: dict[str, object] = {"in_flight_max": 2, "batch_events_max": 10}
"""With answers that take so long, a hundred events a second at most."""
BACKLOG = 400


def stop(daemon: Daemon) -> tuple[int, float]:
    """Ask it to stop; give its exit code and the seconds that took."""
    assert daemon.process
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    return daemon.process.wait(60), time.monotonic() - began


@pytest.mark.parametrize("app", ["is gone", "still sends"])
@pytest.mark.parametrize("left", [LITTLE_SECONDS, PLENTY_SECONDS], ids=["2 s left", "plenty left"])
def test_a_stop_ends_in_its_time_and_loses_nothing(
    tmp_path: Path, left: float, app: str, figure: Callable[[str], None]
) -> None:
    settings = {"shutdown": {"drain_seconds_max": left}, "upstream": SLOW}
    with CountingUpstream() as upstream:
        upstream.fail(503)
        daemon = Daemon(tmp_path, upstream.url, settings=settings)
        load = Load(daemon.url, threads=1)
        with running(daemon):
            while len(load.acked) < BACKLOG:
                load.post_one()
            upstream.heal()
            upstream.delay(UPSTREAM_SECONDS)
            if app == "still sends":
                load.start()
                load.wait_acked(50)
            code, seconds = stop(daemon)
            load.stop()
        before_restart = len(set(upstream.events))
        assert code == 0, daemon.log
        assert "Traceback" not in daemon.log
        if left == PLENTY_SECONDS and app == "is gone":
            assert before_restart == len(load.acked)
            assert seconds < left - 2, "it ends when it is done"
        else:
            assert 0 < before_restart < len(load.acked), "some are delivered, some are left for the next start"
            assert seconds < left + SLACK_SECONDS
        undelivered = len(load.acked) - before_restart
        upstream.delay(0)
        with running(daemon):
            daemon.wait_counted()  # only then is an empty queue one
            assert daemon.metrics().total("queue_recovered_events_total") >= undelivered
            daemon.wait_drained()
        audit = Audit.of(load.acked, upstream.events)
    assert (audit.lost, audit.repeated) == (0, 0)
    figure(
        f"SIGTERM, {left:g} s to drain, the app {app}: exit {code} after {seconds:.1f} s, {audit.acked} acknowledged, "
        f"{undelivered} left to the next start, {audit.lost} lost, {audit.repeated} twice"
    )
