"""`relay queue`: what it shows is there, what it exports are the bytes that came, what it changes stays changed."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from commands.tools import call, lay, settings
from daemon.harness import CountingUpstream, Daemon, Load, envelope, make_event, post, running, wait_until
from spool.disk import SpoolOnDisk, append, record

from relay.observe import fingerprint
from relay.spool import Verdict
from relay.spool.store import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = fingerprint("secret-a"), fingerprint("secret-b")
REJECTED = Verdict("rejected", "no such project", 400, 1)
NOBODY = 65534


def file_of(folder: Path) -> Path:
    return folder / "queue" / "spool" / FILE_NAME


def long_event(size: int) -> bytes:
    """An event that does not deflate by much."""
    return b'{"eventName":"%s"}' % os.urandom(size).hex().encode()


def damage_chunk(folder: Path, chunk: int) -> None:
    with sqlite3.connect(file_of(folder)) as connection:
        connection.execute("UPDATE queue_default SET data = zeroblob(length(data)) WHERE _id = ?", (chunk,))
    connection.close()


# -- looking ----------------------------------------------------------------------------------------------------------


def test_stats_count_what_is_queued_and_what_is_dead(tmp_path: Path):
    lay(tmp_path, record("secret-a", events=2), record("secret-b", events=3), dead=((REJECTED, record(events=7)),))
    config = settings(tmp_path)
    (stats,) = call(config, "queue", "stats", "--json").lines
    counted = {name: stats[name] for name in ("chunks", "events", "lanes", "dead_letters", "dead_events", "held_by")}
    assert counted == {"chunks": 2, "events": 5, "lanes": 2, "dead_letters": 1, "dead_events": 7, "held_by": ""}
    words = call(config, "queue", "stats").out
    assert "no relay runs" in words
    assert "2 lanes" in words


def test_the_oldest_event_of_all_lanes_is_the_one_whose_age_is_told(tmp_path: Path):
    now_ms = int(time.time() * 1000)
    lay(tmp_path, record("secret-a", accepted_at_ms=now_ms - 3_600_000), record("secret-b", accepted_at_ms=now_ms))
    (found,) = call(settings(tmp_path), "queue", "stats", "--json").lines
    assert 3600 <= found["oldest_age_seconds"] < 3660


def test_lanes_are_listed_by_fingerprint_never_by_key(tmp_path: Path):
    lay(tmp_path, record("secret-a", events=2), record("", events=1))
    said = call(settings(tmp_path), "queue", "lanes", "--json")
    assert {lane["fingerprint"]: lane["events"] for lane in said.lines} == {A: 2, "default": 1}
    assert "secret-" not in said.out + call(settings(tmp_path), "queue", "lanes").out


def test_peek_shows_the_oldest_events_of_a_lane(tmp_path: Path):
    lay(tmp_path, *[record("secret-a", text=b'{"eventName":"a%d"}' % n) for n in range(5)], record("secret-b"))
    config = settings(tmp_path)
    shown = call(config, "queue", "peek", "--lane", A, "--chunks", "2", "--json").lines
    assert [chunk["first_events"] for chunk in shown] == [['{"eventName":"a0"}'], ['{"eventName":"a1"}']]
    assert "a0" in call(config, "queue", "peek").out


def test_a_hostile_event_cannot_steer_the_terminal(tmp_path: Path):
    lay(tmp_path, record(text=b'{"eventName":"\x1b]0;owned\x07\x1b[2J"}'))
    assert "\x1b" not in call(settings(tmp_path), "queue", "peek").out


def test_without_a_queue_every_verb_says_where_it_looked_and_makes_nothing(tmp_path: Path):
    config = settings(tmp_path)
    for words in (
        ("queue", "stats"),
        ("queue", "export"),
        ("queue", "verify"),
        ("queue", "pause", A),
        ("queue", "compact"),
        ("queue", "repair"),
        ("dlq", "list"),
    ):
        said = call(config, *words, code=1)
        assert str(tmp_path / "queue") in said.err, words
        assert "--config" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["relay.toml"]


# -- exporting --------------------------------------------------------------------------------------------------------


def test_an_export_gives_every_event_s_bytes_on_a_line_of_its_own(tmp_path: Path):
    odd = b'{"eventName":"x",\n "value":NaN,\r\n "big":123456789012345678901234567890, "s":"\\ud83d"}'
    lay(tmp_path, record("secret-a", text=odd + b',{"eventName":"y"}', events=2), dead=((REJECTED, record()),))
    said = call(settings(tmp_path), "queue", "export")
    first, second = said.out.splitlines()
    assert first.endswith(',"event":' + odd.decode().replace("\n", " ").replace("\r", " ") + "}")
    assert json.loads(second)["event"] == {"eventName": "y"}
    assert json.loads(second)["lane"] == A
    assert "2 events in 1 chunks" in said.err


def test_an_export_of_one_lane_leaves_the_others_out(tmp_path: Path):
    lay(tmp_path, record("secret-a", events=2), record("secret-b", events=3))
    lines = call(settings(tmp_path), "queue", "export", "--lane", B).lines
    assert [line["lane"] for line in lines] == [B] * 3


def test_an_export_of_bodies_gives_requests_that_can_be_posted_again(tmp_path: Path):
    given = record("secret-a", events=3, envelope=b'"user":{"userID":"u"},"statsigMetadata":{}')
    lay(tmp_path, given)
    (line,) = call(settings(tmp_path), "queue", "export", "--bodies").lines
    assert line["body"]["user"] == {"userID": "u"}
    assert len(line["body"]["events"]) == 3
    assert line["headers"] == {"statsig-sdk-type": "py"}


def test_keys_leave_the_queue_only_when_asked_for_and_into_a_file_of_one_s_own(tmp_path: Path):
    lay(tmp_path, record("secret-a"))
    config, target = settings(tmp_path), tmp_path / "out.jsonl"
    assert "secret-a" not in call(config, "queue", "export").out
    call(config, "queue", "export", "--with-keys", "--output", str(target))
    assert json.loads(target.read_text())["key"] == "secret-a"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "not there yet" in call(config, "queue", "export", "--output", str(target), code=1).err


def test_an_export_leaves_out_what_is_damaged_says_so_and_ends_with_1(tmp_path: Path):
    lay(tmp_path, record("secret-a"), record("secret-a"), record("secret-a"))
    damage_chunk(tmp_path, 2)
    said = call(settings(tmp_path), "queue", "export", code=1)
    assert [line["chunk"] for line in said.lines] == [1, 3]
    assert "left out: chunk 2" in said.err


def test_a_slow_export_beside_a_busy_relay_holds_up_neither_its_log_nor_its_answers(
    tmp_path: Path, figure: Callable[[str], None]
):
    """An export whose reader sleeps for seconds, while several times the log's usual length is written."""
    with CountingUpstream() as upstream:
        upstream.fail(503)
        daemon = Daemon(tmp_path, upstream.url)
        load = Load(daemon.url, threads=4, events_per_request=400)
        with running(daemon):
            with load.running():
                load.wait_acked(4000)
            command = [sys.executable, "-m", "relay", "queue", "export", "--config", str(daemon.config_file)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as export:
                assert export.stdout
                export.stdout.readline()
                upstream.heal()
                log, longest = daemon.queue_folder / "spool" / (FILE_NAME + "-wal"), 0
                with load.running():
                    until = time.monotonic() + 5
                    while time.monotonic() < until:
                        longest = max(longest, log.stat().st_size)
                        time.sleep(0.1)
                assert export.poll() is None, "the export has ended, so it was not slow"
                export.stdout.close()
            daemon.wait_drained()
            stored = daemon.metrics().total("ingest_bytes_total")
        assert load.refused == {}
    assert longest < 12 << 20, f"the log grew to {longest:,} bytes"
    figure(f"a slow export beside {stored / 1e6:.0f} MB of load: the log grew to {longest / 1e6:.1f} MB")


# -- verifying and mending --------------------------------------------------------------------------------------------


def test_a_sound_queue_verifies(tmp_path: Path):
    lay(tmp_path, *[record(events=3) for _ in range(250)], dead=((REJECTED, record()),))
    (found,) = call(settings(tmp_path), "queue", "verify", "--json").lines
    assert (found["chunks"], found["events"], found["problems"]) == (251, 751, [])
    assert found["file_checked"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE queue_default SET data = zeroblob(length(data)) WHERE _id = 3", "chunk 3"),
        ("UPDATE queue_default SET events = 9 WHERE _id = 3", "chunk 3 holds 1 events, its row says 9"),
        ("UPDATE queue_default SET bytes = 9 WHERE _id = 3", "its row says 9"),
        ("UPDATE queue_default SET lane = 9 WHERE _id = 3", "chunk 3 is of lane 9"),
        ("INSERT INTO dead_letters VALUES (777, 'expired', '', 0, 0, 0, 0)", "chunk 777 is marked"),
    ],
)
def test_verify_finds_what_is_wrong_with_a_chunk_and_ends_with_1(tmp_path: Path, sql: str, words: str):
    lay(tmp_path, *[record() for _ in range(150)])
    with sqlite3.connect(file_of(tmp_path)) as connection:
        connection.execute(sql)
    connection.close()
    said = call(settings(tmp_path), "queue", "verify", code=1)
    assert words in said.out
    assert "1 problems" in said.out


def test_verify_finds_a_text_that_is_not_what_was_accepted_though_its_row_is_whole(tmp_path: Path):
    lay(tmp_path, record(events=200))  # enough to be deflated
    with sqlite3.connect(file_of(tmp_path)) as connection:
        ((row,),) = connection.execute("SELECT data FROM queue_default").fetchall()
        rest = row[4:8] + bytes(4) + row[12:]  # the text's checksum is lost, the row's is made anew
        connection.execute("UPDATE queue_default SET data = ?", (zlib.crc32(rest).to_bytes(4, "little") + rest,))
    connection.close()
    assert "chunk 1" in call(settings(tmp_path), "queue", "verify", code=1).out


def test_verify_finds_what_only_sqlite_can_see(tmp_path: Path):
    lay(tmp_path, record())
    with file_of(tmp_path).open("r+b") as opened:
        opened.seek(36)  # how many pages are free, by the file's header
        opened.write((5).to_bytes(4, "big"))
    assert "SQLite: " in call(settings(tmp_path), "queue", "verify", code=1).out


HIDE = "DELETE FROM sqlite_schema WHERE name = 'chunks'"
SHOW = "INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)"


@pytest.mark.parametrize(
    ("behind_the_index_s_back", "words"),
    [
        (
            "INSERT INTO queue_default SELECT 151, timestamp, lane, 1, 9, data FROM queue_default WHERE _id = 1",
            "chunk 151 is in the table and not",
        ),
        ("DELETE FROM queue_default WHERE _id = 80", "chunk 80 is in the index and not"),
        ("UPDATE queue_default SET timestamp = 7 WHERE _id = 80", "chunk 80 is in the index and not"),
    ],
)
def test_verify_finds_what_index_and_table_say_differently(tmp_path: Path, behind_the_index_s_back: str, words: str):
    lay(tmp_path, *[record() for _ in range(150)])
    kept: tuple[object, ...] = ()
    for step in (HIDE, behind_the_index_s_back, SHOW):  # each sees the schema anew
        connection = sqlite3.connect(file_of(tmp_path), isolation_level=None)
        kept = kept or connection.execute("SELECT * FROM sqlite_schema WHERE name = 'chunks'").fetchone()
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(step, kept if step == SHOW else ())
        connection.close()
    assert words in call(settings(tmp_path), "queue", "verify", code=1).out


def test_a_damaged_file_is_named_with_its_cure_and_repaired(tmp_path: Path):
    lay(
        tmp_path, *[record("secret-a", text=b'{"eventName":"%s"}' % os.urandom(700).hex().encode()) for _ in range(200)]
    )
    config, file = settings(tmp_path), file_of(tmp_path)
    with file.open("r+b") as opened:
        opened.seek(40 * 4096)
        opened.write(os.urandom(2 * 4096))
    assert "relay queue repair" in call(config, "queue", "verify", code=1).out
    assert "relay queue repair" in call(config, "queue", "export", code=1).err
    (mended,) = call(config, "queue", "repair", "--json", code=1).lines
    assert mended["chunks"] + mended["lost_chunks"] == 200
    assert 190 < mended["chunks"] < 200
    assert (file.parent / mended["aside"]).exists()
    assert len(call(config, "queue", "export", code=1).lines) == mended["chunks"]


def test_a_log_that_hides_events_is_named_and_repaired_before_sqlite_opens_it(tmp_path: Path):
    config, spool = settings(tmp_path), tmp_path / "queue" / "spool"

    async def write_and_be_killed() -> None:
        async with SpoolOnDisk(tmp_path / "running").open() as running:
            for _ in range(50):
                await append(running, record(text=long_event(400)))
            await asyncio.to_thread(shutil.copytree, tmp_path / "running" / "spool", spool)

    asyncio.run(write_and_be_killed())
    with (spool / f"{FILE_NAME}-wal").open("r+b") as opened:
        opened.seek(100 * 4096)
        opened.write(b"garbage")
    for _ in range(2):
        said = call(config, "queue", "verify", code=1).out
        assert "frames of the log" in said
        assert "relay queue repair" in said
    assert "relay queue repair" in call(config, "queue", "compact", code=1).err
    (mended,) = call(config, "queue", "repair", "--json", code=1).lines
    assert mended["lost_frames"] in (1, 2)
    assert mended["chunks"] >= 45
    assert (spool / f"{mended['aside']}-wal").exists()
    assert len(call(config, "queue", "export", code=0 if mended["chunks"] == 50 else 1).lines) == mended["chunks"]


def test_a_repaired_file_is_its_owner_s_alone(tmp_path: Path):
    lay(tmp_path, record())
    call(settings(tmp_path), "queue", "repair", "--force")
    assert stat.S_IMODE(file_of(tmp_path).stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can do it in another user's place")
def test_a_queue_that_root_repairs_still_belongs_to_the_relay_s_user(tmp_path: Path):
    lay(tmp_path, record())
    folder = file_of(tmp_path).parent
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    call(settings(tmp_path), "queue", "repair", "--force")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()} == {(NOBODY, NOBODY)}


def test_a_sound_file_is_not_repaired(tmp_path: Path):
    lay(tmp_path, record())
    before = file_of(tmp_path).stat().st_ino
    assert "sound" in call(settings(tmp_path), "queue", "repair").out
    assert file_of(tmp_path).stat().st_ino == before


@pytest.mark.parametrize(("left", "method"), [(0, "vacuum"), (700, "incremental")])
def test_compact_gives_back_what_delivered_events_have_left(tmp_path: Path, left: int, method: str):
    lay(tmp_path, *[record(text=long_event(4000)) for _ in range(1200)])
    with sqlite3.connect(file_of(tmp_path)) as connection:
        connection.execute("DELETE FROM queue_default WHERE _id > ?", (left,))
    connection.close()
    (done,) = call(settings(tmp_path), "queue", "compact", "--json").lines
    assert done["method"] == method
    assert file_of(tmp_path).stat().st_size == done["after_bytes"] < done["before_bytes"] * 0.7
    assert "nothing was done" in call(settings(tmp_path), "queue", "compact").out
    call(settings(tmp_path), "queue", "verify")


def test_verify_shows_how_far_it_is_on_a_terminal_and_nowhere_else(tmp_path: Path):
    lay(tmp_path, *[record() for _ in range(300)])
    config = settings(tmp_path)
    assert call(config, "queue", "verify").err == ""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "relay", "queue", "verify", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        reader = threading.Thread(target=process.wait)
        reader.start()
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        reader.join()
    os.close(ours)
    assert b"verifying" in seen
    assert seen.endswith(b"\r\x1b[K"), "the line is wiped"


# -- beside a relay ---------------------------------------------------------------------------------------------------


def test_a_paused_lane_waits_over_a_restart_and_goes_on_when_resumed(tmp_path: Path):
    with CountingUpstream() as upstream:
        daemon = Daemon(tmp_path, upstream.url)
        name = fingerprint("secret-test")
        with running(daemon):
            upstream.fail(503)
            assert post(daemon.url, envelope([make_event("held", 1)])).accepted
            (lane,) = call(daemon.config_file, "queue", "pause", name, "--json").lines
            assert (lane["fingerprint"], lane["state"]) == (name, "paused")
            upstream.heal()
            assert post(daemon.url, envelope([make_event("other", 1)]), {"statsig-api-key": "secret-b"}).accepted
            wait_until("the other one is settled on disk", lambda: upstream.events and daemon.queued() == 1)
            daemon.kill9()
        with running(daemon):
            time.sleep(0.5)
            assert daemon.queued() == 1
            assert [lane["state"] for lane in call(daemon.config_file, "queue", "lanes", "--json").lines] == ["paused"]
            call(daemon.config_file, "queue", "resume", name)
            daemon.wait_drained()
        assert sorted(upstream.events) == sorted([make_event("held", 1), make_event("other", 1)])


def test_a_revoked_key_s_backlog_is_delivered_under_another_without_a_restart(tmp_path: Path):
    with CountingUpstream() as upstream:
        daemon = Daemon(tmp_path, upstream.url)
        with running(daemon):
            upstream.fail(401)
            events = [make_event("revoked", n) for n in range(5)]
            for event in events:
                assert post(daemon.url, envelope([event])).accepted
            wait_until("the lane is parked", lambda: [one.state for one in daemon.status().lanes] == ["parked"])
            upstream.heal()
            said = call(daemon.config_file, "queue", "rekey", fingerprint("secret-test"), stdin="secret-fresh\n")
            assert fingerprint("secret-fresh") in said.out
            assert "secret-fresh" not in said.out + said.err
            daemon.wait_drained(5)
            keys = {dict(one.received.headers)["statsig-api-key"] for one in upstream.accepted}
        assert keys == {"secret-fresh"}
        assert sorted(upstream.events) == sorted(events)
        assert "secret-" not in daemon.log


def test_offline_verbs_name_the_relay_that_runs(tmp_path: Path):
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url)) as daemon:
        assert daemon.process
        for verb in ("compact", "repair"):
            assert f"process {daemon.process.pid}" in call(daemon.config_file, "queue", verb, code=1).err


def test_an_unknown_lane_and_a_missing_key_are_told_apart(tmp_path: Path):
    lay(tmp_path, record("secret-a"))
    config = settings(tmp_path)
    assert "relay queue lanes" in call(config, "queue", "pause", "0123abcd", code=1).err
    assert "no key was given" in call(config, "queue", "rekey", A, code=1).err
    assert "cannot be read" in call(config, "queue", "rekey", A, "--key-file", str(tmp_path / "nowhere"), code=1).err


def test_a_queue_that_is_damaged_under_a_running_relay_is_salvaged_and_delivered(tmp_path: Path):
    with CountingUpstream() as upstream:
        upstream.fail(503)
        daemon = Daemon(tmp_path, upstream.url)
        load = Load(daemon.url, events_per_request=1)
        with running(daemon):
            assert all(load.post_one() for _ in range(30))
            daemon.kill9()
            with (daemon.queue_folder / "spool" / FILE_NAME).open("r+b") as opened:
                opened.write(os.urandom(4096))
            (daemon.queue_folder / "spool" / (FILE_NAME + "-wal")).unlink(missing_ok=True)
        upstream.heal()
        with running(daemon):
            assert load.post_one()
            upstream.wait_events(1)
        assert "queue_file_salvaged" in daemon.log
        assert list((daemon.queue_folder / "spool").glob("*.damaged-*"))
