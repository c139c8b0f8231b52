"""`relay dlq`: dead letters are found by id, lane, reason and age, delivered after a replay, gone after a purge."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from commands.tools import call, lay, settings
from daemon.harness import CountingUpstream, Daemon, envelope, make_event, post, running, wait_until
from spool.disk import record

from relay.observe import fingerprint
from relay.spool import Verdict

if TYPE_CHECKING:
    from pathlib import Path

A, B = fingerprint("secret-a"), fingerprint("secret-b")
REJECTED = Verdict("rejected", '{"message":"no such project"}', 400, 2, 1_700_000_000_000)
EXPIRED = Verdict("expired", "older than queue.age_max")
CORRUPT = Verdict("corrupt", "fails its checksum")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Three letters: 1 of lane A rejected, 2 of A expired, 3 of B rejected, with 1, 10 and 100 events."""
    lay(
        tmp_path,
        dead=(
            (REJECTED, record("secret-a", events=1)),
            (EXPIRED, record("secret-a", events=10)),
            (REJECTED, record("secret-b", events=100)),
        ),
    )
    return settings(tmp_path)


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ((), [1, 2, 3]),
        (("1", "3"), [1, 3]),
        (("--lane", A), [1, 2]),
        (("--reason", "rejected"), [1, 3]),
        (("--lane", A, "--reason", "rejected"), [1]),
        (("--older-than", "36500d"), []),
        (("3", "--lane", A), []),
    ],
)
def test_letters_are_found_by_every_filter_and_by_all_of_them_together(config: Path, words: tuple, ids: list):
    assert [letter["id"] for letter in call(config, "dlq", "list", "--json", *words).lines] == ids


def test_a_list_groups_by_key_and_reason_and_says_what_a_reason_means(config: Path):
    out = call(config, "dlq", "list").out
    assert out.count("upstream refused it with 400, 415 or 422") == 2
    assert "no such project" in out
    assert "… and 2 more" in call(config, "dlq", "list", "--limit", "1").out
    assert "secret-" not in out


def test_show_gives_upstream_s_words_and_the_events_and_names_what_is_not_there(config: Path):
    said = call(config, "dlq", "show", "1", "77", code=1)
    for words in ("rejected", "HTTP 400", "no such project", '"eventName":"e"', A):
        assert words in said.out
    assert "no dead letter has the number 77" in said.err
    (whole,) = call(config, "dlq", "show", "2", "--json").lines
    assert len(whole["texts"]) == 10


def test_an_export_gives_the_events_with_their_reason(config: Path):
    lines = call(config, "dlq", "export", "--reason", "rejected").lines
    assert len(lines) == 101
    assert {(line["lane"], line["reason"], line["status"]) for line in lines} == {
        (A, "rejected", 400),
        (B, "rejected", 400),
    }


def test_without_a_relay_a_replay_queues_the_letters_and_a_purge_drops_them(config: Path):
    assert "Queued again: 10 events in 1 dead letter." in call(config, "dlq", "replay", "--reason", "expired").out
    (stats,) = call(config, "queue", "stats", "--json").lines
    assert (stats["events"], stats["dead_events"]) == (10, 101)
    assert "101 events" in call(config, "dlq", "purge", "--all", "--yes").out
    (stats,) = call(config, "queue", "stats", "--json").lines
    assert (stats["events"], stats["dead_events"]) == (10, 0)
    call(config, "queue", "verify")


@pytest.mark.parametrize("verb", [("replay",), ("purge", "--yes")], ids=["replay", "purge"])
@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("2",), [1, 3]),
        (("--lane", A), [3]),
        (("--reason", "rejected"), [2]),
        (("--lane", A, "--reason", "rejected"), [2, 3]),
        (("1", "--lane", B), [1, 2, 3]),
        (("--all", "--older-than", "36500d"), [1, 2, 3]),
    ],
)
def test_what_was_not_chosen_stays(config: Path, verb: tuple, words: tuple, left: list):
    (done,) = call(config, "dlq", *verb, *words, "--json").lines
    assert done["chunks"] == 3 - len(left)
    assert [letter["id"] for letter in call(config, "dlq", "list", "--json").lines] == left


@pytest.mark.parametrize("verb", ["replay", "purge"])
def test_nothing_is_done_to_all_letters_by_omission(config: Path, verb: str):
    assert "--all" in call(config, "dlq", verb, code=1).err
    assert len(call(config, "dlq", "list", "--json").lines) == 3


@pytest.mark.parametrize("verb", [("replay",), ("purge", "--yes")])
def test_letters_that_are_not_there_are_named_and_the_others_done(config: Path, verb: tuple):
    said = call(config, "dlq", *verb, "1", "77", code=1)
    assert "1 event in 1 dead letter." in said.out
    assert "no dead letter has the number 77" in said.err
    assert [letter["id"] for letter in call(config, "dlq", "list", "--json").lines] == [2, 3]


def test_a_purge_asks_first_and_where_nobody_can_be_asked_wants_yes(config: Path):
    assert "--yes" in call(config, "dlq", "purge", "--all", code=1).err
    assert len(call(config, "dlq", "list", "--json").lines) == 3


@pytest.mark.parametrize(("typed", "left"), [("y", 0), ("n", 3), ("", 3)])
def test_a_purge_does_what_the_person_it_asks_says(config: Path, typed: str, left: int):
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{typed}\n".encode())
        command = [sys.executable, "-m", "relay", "dlq", "purge", "--all", "--config", str(config)]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=30, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Drop 111 events in 3 dead letters for good?" in done.stderr
    assert done.returncode == bool(left)
    assert len(call(config, "dlq", "list", "--json").lines) == left


def test_a_misspelled_age_lane_or_reason_does_nothing_and_says_so(config: Path):
    assert "is no age" in call(config, "dlq", "purge", "--older-than", "yesterday", "--yes", code=1).err
    assert "relay queue lanes" in call(config, "dlq", "purge", "--lane", "deadbeef", "--yes", code=1).err
    assert "invalid choice" in call(config, "dlq", "purge", "--reason", "expird", "--yes", code=2).err
    assert len(call(config, "dlq", "list", "--json").lines) == 3


def test_corrupt_letters_are_left_by_a_replay_which_says_so(tmp_path: Path):
    lay(tmp_path, dead=((CORRUPT, record()), (REJECTED, record())))
    config = settings(tmp_path)
    assert "1 corrupt ones stay" in call(config, "dlq", "replay", "--all").out
    assert [letter["reason"] for letter in call(config, "dlq", "list", "--json").lines] == ["corrupt"]


def test_beside_a_relay_a_replayed_letter_is_delivered_and_every_counter_says_so(tmp_path: Path):
    with CountingUpstream() as upstream:
        upstream.fail(400)
        daemon = Daemon(tmp_path, upstream.url)
        events = [make_event("poison", n) for n in range(3)]
        with running(daemon):
            assert post(daemon.url, envelope(events)).accepted
            wait_until("all are dead", lambda: daemon.status().queue.dead_events == 3)
            upstream.heal()
            said = call(daemon.config_file, "dlq", "replay", "--all", "--json")
            assert said.lines == [{"kind": "done", "chunks": 3, "events": 3, "lanes": []}]
            assert sorted(upstream.wait_events(3)) == sorted(events)
            daemon.wait_drained()
            metrics = daemon.metrics()
            metrics.check_conservation()
            assert metrics.total("dead_letter_replayed_events_total") == 3
            assert metrics.total("queue_enqueued_events_total") == 6
            assert metrics.total("dead_letter_events") == 0


def test_beside_a_relay_a_purge_is_counted_as_dropped_and_survives_kill_9(tmp_path: Path):
    with CountingUpstream() as upstream:
        upstream.fail(400)
        daemon = Daemon(tmp_path, upstream.url)
        with running(daemon):
            assert post(daemon.url, envelope([make_event("poison", n) for n in range(3)])).accepted
            wait_until("all are dead", lambda: daemon.status().queue.dead_events == 3)
            call(daemon.config_file, "dlq", "purge", "--all", "--yes")
            metrics = daemon.metrics()
            metrics.check_conservation()
            assert metrics.total("dropped_events_total", reason="purged") == 3
            daemon.kill9()
        with running(daemon):
            assert daemon.status().queue.dead_recovered_events == 0


def test_the_bound_on_dead_letters_evicts_the_oldest_and_counts_them(tmp_path: Path):
    with CountingUpstream() as upstream:
        daemon = Daemon(tmp_path, upstream.url, settings={"queue": {"dead_letter_bytes_max": "2KiB"}})
        with running(daemon):
            for number in range(20):
                if number % 5 == 0:  # one is taken now and then: an upstream that refuses all it is sent is tried less
                    upstream.heal()
                    assert post(daemon.url, envelope([make_event("good", number)])).accepted
                    upstream.wait_events(number // 5 + 1)
                    upstream.fail(400)
                assert post(daemon.url, envelope([make_event("many", number)])).accepted
                wait_until("it died", lambda n=number: _dead_lettered(daemon) == n + 1)
            wait_until("some are gone", lambda: daemon.status().queue.dropped_events.get("evicted", 0) > 5)
            left = [letter["id"] for letter in call(daemon.config_file, "dlq", "list", "--json").lines]
            assert left == sorted(left)
            assert 1 <= len(left) < 10
            shown = call(daemon.config_file, "dlq", "show", str(left[-1])).out
            assert "many-19" in shown
            daemon.metrics().check_conservation()
        assert "dead_letters_evicted" in daemon.log


def _dead_lettered(daemon: Daemon) -> int:
    return sum(daemon.status().queue.dead_lettered_events.values())
