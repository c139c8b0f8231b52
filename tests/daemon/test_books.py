"""The books of one queue through everything that can happen to it: they balance at each step, on the real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands.tools import call
from daemon.harness import CountingUpstream, Daemon, envelope, make_event, post, running, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def balance(daemon: Daemon, **expected: float) -> None:
    """Check both books, and that each figure given is as told."""
    metrics = daemon.metrics()
    metrics.check_conservation()
    assert {name: metrics.total(name) for name in expected} == expected


def send(daemon: Daemon, name: str, events: int) -> None:
    for number in range(events):
        assert post(daemon.url, envelope([make_event(name, number)])).accepted


def test_the_books_balance_through_restart_kill_9_replay_purge_expiry_and_eviction(tmp_path: Path) -> None:
    settings = {"shutdown": {"drain_seconds_max": 0.1}}
    with CountingUpstream() as upstream:
        daemon = Daemon(tmp_path, upstream.url, settings=settings)
        with running(daemon):
            send(daemon, "delivered", 3)
            daemon.wait_drained()
            balance(daemon, queue_enqueued_events_total=3, queue_acked_events_total=3, queue_events=0)
            upstream.fail(400)
            send(daemon, "refused", 4)
            wait_until("four are dead", lambda: daemon.status().queue.dead_events == 4)
            upstream.fail(503)
            send(daemon, "waiting", 5)
            balance(daemon, queue_enqueued_events_total=12, queue_events=5, dead_letter_events=4)
        with running(daemon):
            daemon.wait_counted()
            balance(daemon, queue_recovered_events_total=5, dead_letter_recovered_events_total=4, queue_events=5)
            send(daemon, "killed", 2)
            daemon.kill9()
        with running(daemon):
            daemon.wait_counted()
            balance(daemon, queue_recovered_events_total=7, dead_letter_recovered_events_total=4, queue_events=7)
            letters = [str(letter["id"]) for letter in call(daemon.config_file, "dlq", "list", "--json").lines]
            call(daemon.config_file, "dlq", "replay", letters[0])
            balance(daemon, queue_enqueued_events_total=1, dead_letter_replayed_events_total=1, queue_events=8)
            call(daemon.config_file, "dlq", "purge", letters[1], "--yes")
            balance(daemon, dropped_events_total=1, dead_letter_events=2, queue_events=8)
        daemon.settings["queue"]["age_max"] = 1
        with running(daemon):
            wait_until("all have expired", lambda: daemon.status().queue.dead_events == 10)
            balance(daemon, queue_recovered_events_total=8, queue_events=0, dead_letter_events=10)
        daemon.settings["queue"]["dead_letter_bytes_max"] = "1KiB"
        with running(daemon):
            send(daemon, "expires", 1)
            wait_until("the oldest are evicted", lambda: daemon.status().queue.dropped_events.get("evicted", 0) > 0)
            wait_until("nothing waits", lambda: daemon.queued() == 0)
            balance(daemon, queue_recovered_events_total=0, dead_letter_recovered_events_total=10, queue_events=0)
        del daemon.settings["queue"]["age_max"]
        upstream.heal()
        with running(daemon):
            call(daemon.config_file, "dlq", "replay", "--all")
            daemon.wait_drained()
            balance(daemon, dead_letter_events=0, queue_events=0)
        assert len(set(upstream.events)) == len(upstream.events)
