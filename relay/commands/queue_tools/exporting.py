"""`relay queue export` and `relay dlq export`: the events as they came, a line each."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING

import msgspec

from relay.admin.units import count, events
from relay.commands.queue_tools import common
from relay.commands.queue_tools.progress import ProgressLine
from relay.errors import ChunkCorrupt, RelayError
from relay.observe import fingerprint
from relay.wire.events import split_events

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from relay.spool.letters import DeadLetter
    from relay.spool.reader import Reader
    from relay.spool.record import Chunk
    from relay.spool.store import Entry


class _Label(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands beside an event or a body on its line."""

    chunk: int
    lane: str
    accepted_at_ms: int
    key: str | None = None
    reason: str = ""
    status: int = 0
    headers: dict[str, str] = {}


def export_queue(arguments: argparse.Namespace) -> int:
    """Write what is queued."""
    with common.open_reader(arguments) as reader:
        wanted = common.lanes_named(reader, arguments.lane)
        totals = [lane for lane in reader.totals() if wanted is None or lane.lane in wanted]
        total = sum(lane.chunks for lane in totals)
        return export(arguments, reader, reader.entries(wanted), total)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give an export its options."""
    parser.add_argument("--output", "-o", metavar="FILE", help="write to a new file that only you can read")
    parser.add_argument("--bodies", action="store_true", help="a request body a line, ready to be posted again")
    parser.add_argument("--with-keys", action="store_true", help="write the API key beside each; mind where it goes")


def export(
    arguments: argparse.Namespace, reader: Reader, pages: Iterable[Sequence[Entry | DeadLetter]], total: int
) -> int:
    """Write the chunks of all pages; 1 where one of them cannot be read."""
    labels = _Labels(reader, with_keys=arguments.with_keys)
    write_chunk = _bodies if arguments.bodies else _events
    chunks = written = unreadable = 0
    with _output(arguments.output) as out, ProgressLine("exporting", total) as line:
        for page in pages:
            by_id = {one.id: one for one in page}
            for chunk in reader.chunks(page):
                try:
                    if isinstance(chunk, ChunkCorrupt):
                        raise chunk
                    out.writelines(write_chunk(chunk, labels.of(chunk, by_id[chunk.id])))
                    written += chunk.events
                except (ChunkCorrupt, ValueError) as exc:
                    unreadable += 1
                    print(f"relay: left out: {exc}", file=sys.stderr)
                chunks += 1
                line.at(chunks)
    print(f"{events(written)} in {count(chunks - unreadable)} chunks", file=sys.stderr)
    return 1 if unreadable else 0


class _Labels:
    """What each chunk's lines are labelled with."""

    def __init__(self, reader: Reader, *, with_keys: bool) -> None:
        self._keys = {lane.number: lane.key for lane in reader.lanes()}
        self._with_keys = with_keys

    def of(self, chunk: Chunk, known: Entry | DeadLetter) -> _Label:
        """The label of a chunk."""
        key = self._keys.get(chunk.lane)
        return _Label(
            chunk=chunk.id,
            lane="?" if key is None else fingerprint(key),
            accepted_at_ms=chunk.accepted_at_ms,
            key=key if self._with_keys else None,
            reason=getattr(known, "reason", ""),
            status=getattr(known, "status", 0),
        )


def _events(chunk: Chunk, label: _Label) -> Iterator[bytes]:
    head = msgspec.json.encode(label)[:-1]
    for event in split_events(chunk.text()):
        yield head + b',"event":' + _one_line(event) + b"}\n"


def _bodies(chunk: Chunk, label: _Label) -> Iterator[bytes]:
    lines = chunk.headers.decode(errors="replace").splitlines()
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    head = msgspec.json.encode(msgspec.structs.replace(label, headers=headers))[:-1]
    rest = b"," + chunk.envelope if chunk.envelope else b""
    yield head + b',"body":{"events":[' + _one_line(chunk.text()) + b"]" + _one_line(rest) + b"}}\n"


def _one_line(raw: bytes) -> bytes:
    """JSON has line breaks between its words only, so that a blank says the same."""
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[IO[bytes]]:
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        opened = open(name, "xb", opener=_for_me_alone)  # noqa: SIM115 – closed below
    except OSError as exc:
        raise ExportFailed(f"{name} cannot be written: {exc.strerror}; name a file that is not there yet") from exc
    with opened:
        yield opened


class ExportFailed(RelayError):
    """The export could not be written."""


def _for_me_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
