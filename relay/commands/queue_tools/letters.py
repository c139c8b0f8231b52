"""`relay dlq list`, `show`, `export`, `replay` and `purge`: dead letters by id, lane, reason or age."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import msgspec

from relay.admin.report import DEAD_LETTER_REASONS
from relay.admin.units import count, events, size, span
from relay.commands.queue_tools import common
from relay.commands.queue_tools.exporting import export
from relay.config.values import parse_seconds
from relay.control import Purge, Replay
from relay.control.protocol import Letters
from relay.errors import ChunkCorrupt
from relay.spool.letters import IDS_MAX, Choice
from relay.wire.events import split_events

if TYPE_CHECKING:
    import argparse

    from relay.spool.letters import DeadLetter
    from relay.spool.reader import Reader

REASONS = tuple(DEAD_LETTER_REASONS)


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter, as `--json` prints it."""

    id: int
    lane: str
    events: int
    bytes: int
    accepted_at_ms: int
    died_at_ms: int
    reason: str
    status: int
    detail: str
    attempts: int


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Give a tool the options by which dead letters are chosen."""
    parser.add_argument("ids", nargs="*", type=int, metavar="ID", help="dead letters by their number")
    parser.add_argument("--lane", default="", help="only of this lane: a key's fingerprint, `default`, or a number")
    parser.add_argument("--reason", default="", choices=("", *REASONS), metavar="REASON", help=", ".join(REASONS))
    parser.add_argument("--older-than", metavar="AGE", help="only what died longer ago, for example 2h or 7d")


def list_letters(arguments: argparse.Namespace) -> int:
    """Group the dead letters by lane and reason, then list the first of them."""
    with common.open_reader(arguments) as reader:
        chosen, names = _chosen(reader, arguments), common.fingerprints(reader)
        groups = reader.dead_totals(chosen)
        shown: list[DeadLetter] = []
        for page in reader.dead_letters(chosen):
            if arguments.json:
                for letter in page:
                    common.print_json(_view(letter, names))
                continue
            shown += page
            if len(shown) >= arguments.limit:
                break
    if not arguments.json:
        _print_list(groups, shown[: arguments.limit], names)
    return 0


def _print_list(
    groups: list[tuple[int, str, int, int, int, int]], shown: list[DeadLetter], names: dict[int, str]
) -> None:
    common.print_table(
        ("key", "reason", "#letters", "#events", "#bytes", "oldest", "what it means"),
        [
            (
                names.get(lane, "?"),
                reason,
                count(letters),
                count(number),
                size(held),
                span(time.time() - at_ms / 1000),
                DEAD_LETTER_REASONS.get(reason, ""),
            )
            for lane, reason, letters, number, held, at_ms in groups
        ],
        empty="No dead letters.",
    )
    if not shown:
        return
    print()
    common.print_table(
        ("#id", "key", "reason", "#status", "#events", "died", "detail"),
        [
            (
                str(letter.id),
                names.get(letter.lane, "?"),
                letter.reason,
                str(letter.status or "-"),
                count(letter.events),
                common.moment(letter.died_at_ms),
                common.excerpt(letter.detail),
            )
            for letter in shown
        ],
        empty="",
    )
    total = sum(letters for _, _, letters, _, _, _ in groups)
    if total > len(shown):
        print(f"… and {count(total - len(shown))} more: --limit, or --json for all")


def show(arguments: argparse.Namespace) -> int:
    """Show single dead letters whole: why, and their events; 1 where one is not there."""
    missing = set(arguments.ids)
    with common.open_reader(arguments) as reader:
        names = common.fingerprints(reader)
        for page in reader.dead_letters(Choice(ids=_ids(arguments))):
            for letter in page:
                missing.discard(letter.id)
                _show(reader, letter, names, as_json=arguments.json)
    return _tell_missing(missing)


def _tell_missing(numbers: set[int]) -> int:
    """Name the dead letters that were asked for and are not there; give the exit code."""
    for number in sorted(numbers):
        print(f"relay: no dead letter has the number {number}; `relay dlq list` names them", file=sys.stderr)
    return 1 if numbers else 0


def _missing(reader: Reader, arguments: argparse.Namespace) -> set[int]:
    """Give the ids among those asked for that no dead letter has."""
    if not arguments.ids:
        return set()
    found = {letter.id for page in reader.dead_letters(Choice(ids=_ids(arguments))) for letter in page}
    return set(arguments.ids) - found


def _show(reader: Reader, letter: DeadLetter, names: dict[int, str], *, as_json: bool) -> None:
    try:
        (chunk,) = list(reader.chunks([letter])) or [ChunkCorrupt("it is gone")]
        if isinstance(chunk, ChunkCorrupt):
            raise chunk
        texts = [event.decode(errors="replace") for event in split_events(chunk.text())]
        envelope = chunk.envelope.decode(errors="replace")
    except (ChunkCorrupt, ValueError) as exc:
        texts, envelope = [f"its events cannot be read: {exc}"], ""
    if as_json:
        common.print_json(msgspec.structs.asdict(_view(letter, names)) | {"envelope": envelope, "texts": texts})
        return
    print(f"dead letter {letter.id}  lane {names.get(letter.lane, '?')}  {events(letter.events)}, {size(letter.bytes)}")
    print(f"  reason    {letter.reason}: {DEAD_LETTER_REASONS.get(letter.reason, '')}")
    status = f"HTTP {letter.status}: " if letter.status else ""
    print(f"  answer    {status}{common.printable(letter.detail) or '-'}")
    print(f"  attempts  {letter.attempts}, the first {common.moment(letter.first_attempt_at_ms)}")
    print(f"  accepted  {common.moment(letter.accepted_at_ms)}, died {common.moment(letter.died_at_ms)}")
    if envelope:
        print(f"  envelope  {common.printable(envelope)}")
    for text in texts:
        print(f"  event     {common.printable(text)}")


def export_letters(arguments: argparse.Namespace) -> int:
    """Write the chosen dead letters' events."""
    with common.open_reader(arguments) as reader:
        chosen = _chosen(reader, arguments)
        total = sum(letters for _, _, letters, _, _, _ in reader.dead_totals(chosen))
        return export(arguments, reader, reader.dead_letters(chosen), total)


def replay(arguments: argparse.Namespace) -> int:
    """Queue the chosen dead letters anew."""
    _must_choose(arguments)
    with common.open_reader(arguments) as reader:
        groups, missing = reader.dead_totals(_chosen(reader, arguments)), _missing(reader, arguments)
    wanted = sum(letters for _, _, letters, _, _, _ in groups)
    reply = common.change(arguments, Replay(_letters(arguments)), what="replaying", total=wanted)
    if arguments.json:
        common.print_json(reply)
        return _tell_missing(missing)
    print(f"Queued again: {_held(getattr(reply, 'events', 0), getattr(reply, 'chunks', 0))}.")
    corrupt = sum(letters for _, reason, letters, _, _, _ in groups if reason == "corrupt")
    if corrupt:
        print(f"{count(corrupt)} corrupt ones stay: what upstream would get of them nobody knows. Purge them instead.")
    return _tell_missing(missing)


def purge(arguments: argparse.Namespace) -> int:
    """Drop the chosen dead letters for good, after asking."""
    _must_choose(arguments)
    with common.open_reader(arguments) as reader:
        groups, missing = reader.dead_totals(_chosen(reader, arguments)), _missing(reader, arguments)
    wanted, number = sum(group[2] for group in groups), sum(group[3] for group in groups)
    if wanted and not arguments.yes:
        _confirm(f"Drop {_held(number, wanted)} for good? [y/N] ")
    reply = common.change(arguments, Purge(_letters(arguments)), what="purging", total=wanted)
    if arguments.json:
        common.print_json(reply)
    else:
        print(f"Gone: {_held(getattr(reply, 'events', 0), getattr(reply, 'chunks', 0))}.")
    return _tell_missing(missing)


def _held(number: int, letters: int) -> str:
    return f"{events(number)} in {count(letters)} dead letter{'' if letters == 1 else 's'}"


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise common.ToolFailed("this drops events for good; say --yes where nobody can be asked")
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise common.ToolFailed("nothing was dropped")


def _must_choose(arguments: argparse.Namespace) -> None:
    if not (arguments.ids or arguments.lane or arguments.reason or arguments.older_than or arguments.all):
        raise common.ToolFailed("say which: ids, --lane, --reason, --older-than, or --all")


def _letters(arguments: argparse.Namespace) -> Letters:
    return Letters(
        ids=_ids(arguments),
        lane=arguments.lane,
        reason=arguments.reason,
        older_than_seconds=_older_than(arguments),
    )


def _chosen(reader: Reader, arguments: argparse.Namespace) -> Choice:
    older = _older_than(arguments)
    return Choice(
        ids=_ids(arguments),
        lanes=common.lanes_named(reader, arguments.lane),
        reason=arguments.reason,
        died_before_ms=None if older is None else int((time.time() - older) * 1000),
    )


def _ids(arguments: argparse.Namespace) -> tuple[int, ...]:
    if len(arguments.ids) > IDS_MAX:
        raise common.ToolFailed(f"{len(arguments.ids)} ids are too many for one command; {IDS_MAX} are not")
    return tuple(arguments.ids)


def _older_than(arguments: argparse.Namespace) -> float | None:
    if not arguments.older_than:
        return None
    try:
        return parse_seconds(arguments.older_than)
    except ValueError as exc:
        raise common.ToolFailed(f"--older-than {arguments.older_than!r} is no age: {exc}") from exc


def _view(letter: DeadLetter, names: dict[int, str]) -> LetterView:
    return LetterView(
        id=letter.id,
        lane=names.get(letter.lane, "?"),
        events=letter.events,
        bytes=letter.bytes,
        accepted_at_ms=letter.accepted_at_ms,
        died_at_ms=letter.died_at_ms,
        reason=letter.reason,
        status=letter.status,
        detail=letter.detail,
        attempts=letter.attempts,
    )
