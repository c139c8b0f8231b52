"""`relay queue stats`, `peek` and `lanes`: how much there is, whose, and what it looks like."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from relay.admin.units import count, events, size, span
from relay.commands.common import load_config
from relay.commands.queue_tools import common
from relay.control import LaneList, Lanes, ask
from relay.control.protocol import LaneView
from relay.errors import ChunkCorrupt, RelayError
from relay.observe import fingerprint
from relay.spool.folder import holder_of
from relay.spool.letters import Choice
from relay.wire.events import split_events

if TYPE_CHECKING:
    import argparse

    from relay.spool.reader import LaneTotals, Reader
    from relay.spool.record import Chunk


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """What `queue stats --json` prints."""

    folder: str
    held_by: str
    """The process that has the queue open; empty where none has."""
    chunks: int
    events: int
    bytes: int
    oldest_age_seconds: float
    lanes: int
    dead_letters: int
    dead_events: int
    dead_bytes: int
    database_bytes: int
    free_bytes: int
    log_bytes: int
    damaged_bytes: int
    bytes_max: int


def stats(arguments: argparse.Namespace) -> int:
    """Count what is on disk."""
    with common.open_reader(arguments) as reader:
        found = _stats(reader, arguments)
    if arguments.json:
        common.print_json(found)
        return 0
    print(f"{found.folder}, {f'held by {found.held_by}' if found.held_by else 'no relay runs on it'}")
    common.print_table(
        ("", "#chunks", "#events", "#bytes", ""),
        [
            ("queued", count(found.chunks), count(found.events), size(found.bytes), _since(found)),
            ("dead letters", count(found.dead_letters), count(found.dead_events), size(found.dead_bytes), ""),
        ],
        empty="",
    )
    print(
        f"On disk: {size(found.database_bytes)}, of which {size(found.free_bytes)} are free for the next events; log "
        f"{size(found.log_bytes)}; queue.bytes_max {size(found.bytes_max)}."
    )
    if found.damaged_bytes:
        print(f"Set aside as damaged: {size(found.damaged_bytes)}; delete these files when you need them no more.")
    return 0


def _since(found: QueueStats) -> str:
    lanes = f"{count(found.lanes)} {'lane' if found.lanes == 1 else 'lanes'}"
    return f"{lanes}, the oldest waits for {span(found.oldest_age_seconds)}" if found.chunks else ""


def _stats(reader: Reader, arguments: argparse.Namespace) -> QueueStats:
    queue = load_config(arguments).queue
    live, dead, files = reader.totals(), reader.dead_totals(Choice()), reader.files()
    oldest_ms = min((lane.oldest_accepted_at_ms for lane in live), default=None)
    return QueueStats(
        folder=str(reader.folder),
        held_by=holder_of(queue.directory) or "",
        chunks=sum(lane.chunks for lane in live),
        events=sum(lane.events for lane in live),
        bytes=sum(lane.bytes for lane in live),
        oldest_age_seconds=0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000),
        lanes=len(live),
        dead_letters=sum(letters for _, _, letters, _, _, _ in dead),
        dead_events=sum(number for _, _, _, number, _, _ in dead),
        dead_bytes=sum(held for _, _, _, _, held, _ in dead),
        database_bytes=files.database_bytes,
        free_bytes=files.free_bytes,
        log_bytes=files.log_bytes,
        damaged_bytes=files.damaged_bytes,
        bytes_max=queue.bytes_max,
    )


def lanes(arguments: argparse.Namespace) -> int:
    """List the lanes: as the relay that runs has them, or as they lie on disk."""
    with common.open_reader(arguments) as reader:
        reply = ask(reader.folder, Lanes(), lambda _: None)
        found = reply.lanes if isinstance(reply, LaneList) else _stored_lanes(reader)
    if arguments.json:
        for lane in found:
            common.print_json(lane)
        return 0
    print_lanes(found)
    if isinstance(reply, LaneList) and reply.recovering:
        print("An earlier run's index is still loading: the numbers grow.")
    return 0


def print_lanes(found: tuple[LaneView, ...]) -> None:
    """Print lanes as a table."""
    common.print_table(
        ("#lane", "key", "state", "#events", "#bytes", "#in flight", "#dead letters", "oldest", "next try", "why"),
        [
            (
                str(lane.number),
                lane.fingerprint,
                lane.state,
                count(lane.events),
                size(lane.bytes),
                count(lane.in_flight_events),
                count(lane.dead_chunks),
                "-" if lane.oldest_accepted_at_ms is None else span(time.time() - lane.oldest_accepted_at_ms / 1000),
                "-" if lane.next_try_in_seconds is None else span(lane.next_try_in_seconds),
                common.excerpt(lane.error) or "-",
            )
            for lane in found
        ],
        empty="No lane holds anything.",
    )


def _stored_lanes(reader: Reader) -> tuple[LaneView, ...]:
    live = {lane.lane: lane for lane in reader.totals()}
    dead: dict[int, int] = {}
    for number, _, letters, _, _, _ in reader.dead_totals(Choice()):
        dead[number] = dead.get(number, 0) + letters
    return tuple(
        _stored_lane(lane.number, lane.key, live.get(lane.number), dead.get(lane.number, 0), paused=lane.paused)
        for lane in reader.lanes()
        if lane.number in live or lane.number in dead or lane.paused
    )


def _stored_lane(number: int, key: str, live: LaneTotals | None, dead: int, *, paused: bool) -> LaneView:
    return LaneView(
        number=number,
        fingerprint=fingerprint(key),
        state="paused" if paused else "stored",
        events=live.events if live else 0,
        bytes=live.bytes if live else 0,
        dead_chunks=dead,
        oldest_accepted_at_ms=live.oldest_accepted_at_ms if live else None,
    )


def peek(arguments: argparse.Namespace) -> int:
    """Show the oldest chunks and the first events in each."""
    shown = 0
    with common.open_reader(arguments) as reader:
        names, wanted = common.fingerprints(reader), common.lanes_named(reader, arguments.lane)
        for page in reader.entries(wanted):
            for chunk in reader.chunks(page[: arguments.chunks - shown]):
                _show(chunk, names, arguments)
            shown += len(page)
            if shown >= arguments.chunks:
                break
    if not shown and not arguments.json:
        print("Nothing is queued.")
    return 0


def _show(chunk: Chunk | ChunkCorrupt, names: dict[int, str], arguments: argparse.Namespace) -> None:
    if isinstance(chunk, ChunkCorrupt):
        _say_corrupt(chunk, as_json=arguments.json)
        return
    try:
        raw = split_events(chunk.text())[: arguments.events]
    except (ChunkCorrupt, ValueError) as exc:
        _say_corrupt(exc, as_json=arguments.json)
        return
    texts = [event.decode(errors="replace") for event in raw]
    name = names.get(chunk.lane, "?")
    if arguments.json:
        common.print_json(
            {"chunk": chunk.id, "lane": name, "accepted_at_ms": chunk.accepted_at_ms, "events": chunk.events}
            | {"envelope": chunk.envelope.decode(errors="replace"), "first_events": texts}
        )
        return
    print(f"chunk {chunk.id}  lane {name}  accepted {common.moment(chunk.accepted_at_ms)}  {events(chunk.events)}")
    for text in texts:
        print("  " + common.excerpt(common.printable(text)))
    if chunk.events > len(texts):
        print(f"  … and {count(chunk.events - len(texts))} more")


def _say_corrupt(error: Exception, *, as_json: bool) -> None:
    text = str(error) if isinstance(error, RelayError) else f"a chunk holds no JSON: {error}"
    if as_json:
        common.print_json({"error": text})
    else:
        print(text)
