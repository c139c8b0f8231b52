"""What the queue's tools share: where the queue is, how a thing is changed, how things are shown."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from relay.commands.common import add_config_option, load_config
from relay.commands.queue_tools.progress import ProgressLine
from relay.control import Bounds, Refused, ask, carry_out
from relay.control.naming import lanes_called
from relay.errors import RelayError, StoreDamaged
from relay.observe import fingerprint
from relay.spool.folder import FOLDER_NAME
from relay.spool.reader import NoQueue, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from relay.control import Done, LaneList
    from relay.control.protocol import Request

EXCERPT_CHARACTERS: Final = 100


class ToolFailed(RelayError):
    """A tool could not do what it was asked; the text says what to do next."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a tool `--config` and `--json`."""
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line, instead of words")


def open_reader(arguments: argparse.Namespace) -> Reader:
    """Look at the queue that the settings name."""
    return Reader(directory_of(arguments))


def directory_of(arguments: argparse.Namespace) -> Path:
    """Where the settings have the queue."""
    return load_config(arguments).queue.directory


def change(arguments: argparse.Namespace, request: Request, *, what: str = "", total: int = 0) -> Done | LaneList:
    """Have the relay that runs do it, or do it here where none runs; raises ToolFailed, SpoolError."""
    queue = load_config(arguments).queue
    folder = queue.directory / FOLDER_NAME
    if not folder.is_dir():
        raise NoQueue(f"there is no queue in {queue.directory} yet; is queue.directory the relay's? See --config")
    with ProgressLine(what, total) as line:
        try:
            reply = ask(folder, request, lambda progress: line.at(progress.chunks))
        except PermissionError as exc:
            raise ToolFailed(f"{folder} is not yours to use; try it as the user that runs the relay") from exc
        if reply is None:
            quiet_logs()
            bounds = Bounds(
                bytes_max=queue.bytes_max,
                lanes_max=queue.lanes_max,
                dead_letter_bytes_max=queue.dead_letter_bytes_max,
            )
            reply = carry_out(queue.directory, request, lambda progress: line.at(progress.chunks), bounds=bounds)
    if isinstance(reply, Refused):
        raise ToolFailed(reply.message)
    return reply


def quiet_logs() -> None:
    """Have what the rooms log, when a tool uses them, go to stderr, and only if it is an error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def lanes_named(reader: Reader, name: str) -> tuple[int, ...] | None:
    """The lanes that an option means; None where it was not given."""
    return tuple(lanes_called(name, [(lane.number, lane.key) for lane in reader.lanes()])) if name else None


def fingerprints(reader: Reader) -> dict[int, str]:
    """What each lane is called."""
    return {lane.number: fingerprint(lane.key) for lane in reader.lanes()}


def print_json(thing: msgspec.Struct | dict[str, object]) -> None:
    """Print an object as one line."""
    print(msgspec.json.encode(thing).decode())


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print columns; those whose head begins with # stand to the right."""
    lines = [[head.lstrip("#") for head in heads], *(list(map(printable, row)) for row in rows)]
    if len(lines) == 1:
        print(empty)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [head.startswith("#") for head in heads]
    for line in lines:
        cells = zip(line, widths, right, strict=True)
        print(
            "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells).rstrip()
        )


def printable(text: str) -> str:
    """Other people's texts must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def excerpt(text: str) -> str:
    """So much of a text that it fits into a line."""
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 1] + "…"


def moment(at_ms: int) -> str:
    """Unix milliseconds as RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000)) if at_ms else "-"


def add_verbs(
    parser: argparse.ArgumentParser, verbs: Sequence[tuple[str, Callable[[argparse.Namespace], int], str, str]]
) -> dict[str, argparse.ArgumentParser]:
    """Give a command its verbs, of (name, what runs it, help, example); gives the parser of each."""
    choices = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    parsers = {}
    for name, run, text, example in verbs:
        parsers[name] = choices.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parsers[name].set_defaults(run_verb=run)
        add_options(parsers[name])
    return parsers


def run_verb(arguments: argparse.Namespace) -> int:
    """Run the verb that was called for; a damaged file is answered with what to do about it."""
    run: Callable[[argparse.Namespace], int] = arguments.run_verb
    try:
        return run(arguments)
    except StoreDamaged as exc:
        raise ToolFailed(
            f"{exc}. The file is damaged: a relay that runs salvages it by itself; where none does, "
            "`relay queue repair`"
        ) from exc
