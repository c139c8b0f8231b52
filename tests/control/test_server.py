"""The control socket over a real spool: verbs do what they say, at most once, and nothing hangs on a tool."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from spool.disk import NOW_MS, SpoolOnDisk, append, check_books, record, until

from relay.control import (
    Bounds,
    ControlServer,
    Done,
    LaneList,
    Lanes,
    Pause,
    Purge,
    Refused,
    Rekey,
    Replay,
    Resume,
    Verbs,
    ask,
    carry_out,
)
from relay.control.protocol import LINE_BYTES_MAX, SOCKET_NAME, Letters, decode_reply, encode_request
from relay.errors import SpoolLocked
from relay.observe import fingerprint
from relay.spool import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from relay.control.protocol import Request
    from relay.spool.spool import DiskSpool

SERVED_AT_MS = 2_000_000_000_000
BOUNDS = Bounds(bytes_max=1 << 28, lanes_max=8, dead_letter_bytes_max=1 << 28)
A, B = fingerprint("secret-a"), fingerprint("secret-b")


class Delivery:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def pause(self, lane: int) -> None:
        self.told.append(("pause", lane))

    def resume(self, lane: int) -> None:
        self.told.append(("resume", lane))


@contextlib.asynccontextmanager
async def serving(disk: SpoolOnDisk) -> AsyncIterator[tuple[DiskSpool, Delivery]]:
    async with disk.open() as spool:
        delivery = Delivery()
        verbs = Verbs(spool, delivery=delivery, standings=dict, now_ms=lambda: SERVED_AT_MS)
        server = ControlServer(disk.directory / "spool", verbs)
        await server.open()
        try:
            yield spool, delivery
        finally:
            await server.close()


@pytest.fixture
def disk(tmp_path: Path) -> SpoolOnDisk:
    """A folder whose path is longer than a socket's address may be."""
    return SpoolOnDisk(tmp_path / ("x" * 120))


async def call(disk: SpoolOnDisk, request: Request) -> Done | LaneList | Refused | None:
    return await asyncio.to_thread(ask, disk.directory / "spool", request, lambda _: None)


async def bury(spool: DiskSpool, reason: str, *records: object) -> None:
    await append(spool, *records)
    for lane in spool.lanes():
        refs = spool.lease(lane.lane, events_max=1 << 20, bytes_max=1 << 30)
        await spool.bury(refs, Verdict(reason))


async def test_a_pause_reaches_the_disk_and_the_forwarder(disk: SpoolOnDisk):
    async with serving(disk) as (spool, delivery):
        await append(spool, record("secret-a"))
        reply = await call(disk, Pause(A))
        assert isinstance(reply, Done)
        assert [(lane.fingerprint, lane.state) for lane in reply.lanes] == [(A, "paused")]
        assert delivery.told == [("pause", 1)]
    async with serving(disk) as (spool, delivery):
        Verbs(spool, delivery=delivery, standings=dict, now_ms=lambda: 0).restore_pauses()
        assert delivery.told == [("pause", 1)]
        await call(disk, Resume(A))
        assert delivery.told[-1] == ("resume", 1)
        assert not any(lane.paused for lane in spool.all_lanes())


async def test_a_rekeyed_lane_tries_at_once_unless_somebody_holds_it(disk: SpoolOnDisk):
    async with serving(disk) as (spool, delivery):
        await append(spool, record("secret-a"))
        await append(spool, record("secret-c"))
        await call(disk, Pause("2"))
        for lane in ("1", "2"):
            reply = await call(disk, Rekey(lane, "secret-b"))
            assert isinstance(reply, Done)
            assert [view.fingerprint for view in reply.lanes] == [B]
        assert delivery.told == [("pause", 2), ("resume", 1)]
        assert spool.key_of(1) == spool.key_of(2) == "secret-b"


async def test_an_unusable_key_and_an_unknown_lane_are_refused(disk: SpoolOnDisk):
    async with serving(disk) as (spool, delivery):
        await append(spool, record("secret-a"))
        for request, code in (
            (Rekey("1", "two\nlines"), "malformed"),
            (Pause("9"), "unknown_lane"),
            (Purge(Letters(lane="9")), "unknown_lane"),
        ):
            reply = await call(disk, request)
            assert isinstance(reply, Refused)
            assert reply.code == code
        assert delivery.told == []


async def test_letters_are_replayed_and_purged_by_what_was_asked(disk: SpoolOnDisk):
    async with serving(disk) as (spool, _):
        await bury(spool, "rejected", record("secret-a", events=2))
        await bury(spool, "expired", record("secret-b", events=3))
        assert await call(disk, Replay(Letters(lane=B, reason="rejected"))) == Done()
        assert await call(disk, Replay(Letters(lane=A))) == Done(1, 2)
        dead_for_seconds = (SERVED_AT_MS - NOW_MS) / 1000
        assert await call(disk, Purge(Letters(older_than_seconds=dead_for_seconds + 1))) == Done()
        assert await call(disk, Purge(Letters(older_than_seconds=dead_for_seconds - 1))) == Done(1, 3)
        assert spool.stats().dead_events == 0
        check_books(spool)


async def test_without_a_relay_the_same_is_done_under_the_folder_s_lock(disk: SpoolOnDisk):
    async with disk.open() as spool:
        await bury(spool, "rejected", record("secret-a", events=2))
        await append(spool, record("secret-b", events=5))
        with pytest.raises(SpoolLocked):
            await asyncio.to_thread(carry_out, disk.directory, Pause(B), lambda _: None, bounds=BOUNDS)
    assert await call(disk, Pause(B)) is None
    heard: list[int] = []
    done = await asyncio.to_thread(
        carry_out, disk.directory, Replay(Letters()), lambda so_far: heard.append(so_far.events), bounds=BOUNDS
    )
    assert (done, heard) == (Done(1, 2), [2])
    await asyncio.to_thread(carry_out, disk.directory, Pause(B), lambda _: None, bounds=BOUNDS)
    async with disk.open() as spool:
        await until(lambda: not spool.stats().recovering)
        assert (spool.stats().events, spool.stats().dead_events) == (7, 0)
        assert [lane.key for lane in spool.all_lanes() if lane.paused] == ["secret-b"]


async def test_the_socket_is_its_owner_s_alone_and_gone_after_a_stop(disk: SpoolOnDisk):
    path = disk.directory / "spool" / SOCKET_NAME
    async with serving(disk):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_socket_that_a_killed_relay_left_is_in_nobody_s_way(disk: SpoolOnDisk):
    async with serving(disk):
        path = disk.directory / "spool" / SOCKET_NAME
        left = path.rename(path.with_name("left"))
    left.rename(path)
    assert await call(disk, Lanes()) is None
    async with serving(disk):
        assert isinstance(await call(disk, Lanes()), LaneList)


async def test_several_requests_share_a_connection_and_nonsense_ends_none(disk: SpoolOnDisk):
    async with serving(disk) as (spool, _):
        await append(spool, record("secret-a"))

        def talk() -> list[object]:
            with socket.socket(socket.AF_UNIX) as connection:
                from relay.control.server import short_name  # noqa: PLC0415

                with short_name(disk.directory / "spool", SOCKET_NAME) as name:
                    connection.connect(name)
                connection.sendall(encode_request(Pause("1")) + b"nonsense\n" + encode_request(Lanes()))
                lines = connection.makefile("rb")
                return [decode_reply(lines.readline()) for _ in range(3)]

        paused, refused, lanes = await asyncio.to_thread(talk)
        assert isinstance(paused, Done)
        assert isinstance(refused, Refused)
        assert isinstance(lanes, LaneList)


async def test_a_line_without_end_is_cut_off_and_harms_nobody(disk: SpoolOnDisk):
    async with serving(disk):

        def flood() -> None:
            from relay.control.server import short_name  # noqa: PLC0415

            with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
                with short_name(disk.directory / "spool", SOCKET_NAME) as name:
                    connection.connect(name)
                connection.settimeout(5)
                for _ in range(4):
                    connection.sendall(b"x" * LINE_BYTES_MAX)
                assert connection.recv(1) == b""

        await asyncio.to_thread(flood)
        assert isinstance(await call(disk, Lanes()), LaneList)


async def test_a_tool_that_goes_away_stops_its_purge_between_two_commits_and_the_books_hold(disk: SpoolOnDisk):
    async with serving(disk) as (spool, _):
        for _ in range(3):
            await bury(spool, "rejected", *[record(f"k{n}") for n in [0]])

        def leave() -> None:
            from relay.control.server import short_name  # noqa: PLC0415

            with socket.socket(socket.AF_UNIX) as connection:
                with short_name(disk.directory / "spool", SOCKET_NAME) as name:
                    connection.connect(name)
                connection.sendall(encode_request(Purge(Letters())))

        await asyncio.to_thread(leave)
        await until(lambda: spool.stats().dead_events == 0)
        assert isinstance(await call(disk, Lanes()), LaneList)


async def test_a_key_is_in_no_reply_and_in_no_log(disk: SpoolOnDisk, capsys: pytest.CaptureFixture[str]):
    async with serving(disk) as (spool, _):
        await append(spool, record("secret-a"))
        replies = [await call(disk, Rekey("1", "secret-b")), await call(disk, Lanes()), await call(disk, Pause("1"))]
    shown = repr(replies) + capsys.readouterr().out
    assert "operator_did" in shown
    assert "secret-" not in shown
