"""`relay status`: what the status page says, in a terminal."""

from __future__ import annotations

import http.client
import shutil
import socket
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from relay.admin.report import Report
from relay.commands.common import add_config_option, load_config
from relay.errors import RelayError

if TYPE_CHECKING:
    import argparse

    from relay.admin.headline import Tone
    from relay.admin.report import Column, Table
    from relay.config import Address

NAME = "status"
HELP = "say how a running relay is doing: the sentence and the numbers of its status page"

WATCH_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 5.0
WIDTH_MIN: Final = 40
WIDTH_MAX: Final = 110
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_COLOURS: Final[dict[Tone, str]] = {"good": "32", "busy": "34", "warn": "33", "bad": "31"}
_CLEAR: Final = "\x1b[H\x1b[2J"
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where to knock, not where to listen


class NoAnswer(RelayError):
    """The relay could not be asked, or gave no report; the text says what to do next."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config_option(parser)
    parser.add_argument("--url", help="where the relay's admin port is (default: admin.address of the settings)")
    parser.add_argument("--watch", action="store_true", help="show it anew each second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, one line a look")


def run(arguments: argparse.Namespace) -> int:
    """Look once, or until Ctrl-C; raises NoAnswer where nothing answers the only look."""
    door = _door_from_url(arguments.url) if arguments.url else _door_from_address(load_config(arguments).admin.address)
    if not arguments.watch:
        print(_look(door, as_json=arguments.json))
        return 0
    try:
        while True:
            _show_again(door, as_json=arguments.json)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _look(door: _Door, *, as_json: bool) -> str:
    body = door.fetch()
    try:
        report = msgspec.json.decode(body, type=Report)
    except msgspec.DecodeError as exc:
        raise NoAnswer(f"{door.name} answers, but not as an event relay of this release ({exc}); check --url") from exc
    return body.decode() if as_json else render(report, width=_width(), colour=sys.stdout.isatty())


def _show_again(door: _Door, *, as_json: bool) -> None:
    """One look of many: a relay that does not answer now may do so in a second."""
    try:
        text = _look(door, as_json=as_json)
    except NoAnswer as exc:
        if as_json:
            print(f"relay: {exc}", file=sys.stderr)
            return
        text = str(exc)
    print(text if as_json or not sys.stdout.isatty() else _CLEAR + text, flush=True)


def _width() -> int:
    return max(WIDTH_MIN, min(WIDTH_MAX, shutil.get_terminal_size((80, 24)).columns))


# Asking


class _Door:
    """Where the admin port is, and how to ask it; no proxy of the environment stands between."""

    def __init__(self, name: str, connection: http.client.HTTPConnection) -> None:
        self.name = name
        self._connection = connection

    def fetch(self) -> bytes:
        """Get /status; raises NoAnswer."""
        try:
            self._connection.request("GET", "/status")
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise NoAnswer(
                f"nothing answers at {self.name} ({reason}). "
                "Start it with `relay run`, or say with --config or --url where its admin port is"
            ) from exc
        finally:
            self._connection.close()
        if answer.status != http.client.OK:
            words = " ".join(body.decode(errors="replace").split())[:300]
            raise NoAnswer(f"{self.name} answers {answer.status}: {words}")
        return body


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the path instead of the host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _door_from_address(address: Address) -> _Door:
    if address.path:
        return _Door(str(address), _UnixConnection(address.path))
    host = _EVERYWHERE.get(address.host, address.host)
    return _Door(str(address), http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_SECONDS))


def _door_from_url(url: str) -> _Door:
    """Read `http://host:port`, `host:port` or `unix:/path`; a path behind the port is left out."""
    if url.startswith("unix:"):
        return _Door(url, _UnixConnection(url.removeprefix("unix:").removeprefix("//")))
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise NoAnswer(f"--url {url!r} is no address: {exc}; give one like http://127.0.0.1:9464") from exc
    if not host or parts.scheme not in ("http", "https"):
        raise NoAnswer(f"--url {url!r} is no address; give one like http://127.0.0.1:9464")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return _Door(url, kind(host, port, timeout=TIMEOUT_SECONDS))


# Laying out


def render(report: Report, *, width: int, colour: bool) -> str:
    """Lay a report out as lines of at most `width` columns, long words apart."""
    view = report.view
    parts = [
        _headline(report, width, colour=colour),
        _facts(report, width),
        _curve(report, width),
        *(_table(table, width) for table in (view.lanes, view.attempts, view.dead_letters) if table.rows),
        _printable(view.footer),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(report: Report, width: int, *, colour: bool) -> str:
    first, *more = textwrap.wrap(_printable(report.sentence), width - 2)
    dot = f"\x1b[{_COLOURS[report.headline.tone]}m●\x1b[0m" if colour else "●"
    return "\n".join([f"{dot} {first}", *(f"  {line}" for line in more)])


def _facts(report: Report, width: int) -> str:
    facts = report.view.facts
    labels, values = max(len(fact.label) for fact in facts), max(len(fact.value) for fact in facts)
    lines = (f"  {fact.label:<{labels}}  {fact.value:>{values}}  {fact.note}".rstrip() for fact in facts)
    return "\n".join(_cut(_printable(line), width) for line in lines)


def _curve(report: Report, width: int) -> str:
    """The depth over fifteen minutes as a row of blocks, each the highest of its slice."""
    slices = max(10, width - 4)
    oldest = max(1.0, report.depth[0][0])
    highest = [0] * slices
    for ago, number in report.depth:
        at = min(slices - 1, int((1 - ago / oldest) * slices))
        highest[at] = max(highest[at], number)
    _fill_gaps(highest, {min(slices - 1, int((1 - ago / oldest) * slices)) for ago, _ in report.depth})
    top = max(1, *highest)
    blocks = "".join(_HEIGHTS[-(-number * (len(_HEIGHTS) - 1) // top)] for number in highest)
    return f"  {blocks}\n  {_cut(report.view.chart.description, width - 2)}"


def _fill_gaps(values: list[int], known: set[int]) -> None:
    """A slice without a sample is as deep as the one before it."""
    for at in range(1, len(values)):
        if at not in known:
            values[at] = values[at - 1]


def _table(table: Table, width: int) -> str:
    heads = [column.name for column in table.columns]
    rows = [[_printable(cell.text) for cell in row] for row in table.rows]
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    lines = [_cut(_row(table.columns, widths, row), width) for row in (heads, *rows)]
    note = [f"  {table.note}"] if table.note else []
    return "\n".join([table.name, *lines, *note])


def _row(columns: tuple[Column, ...], widths: list[int], cells: list[str]) -> str:
    aligned = (
        cell.rjust(size) if column.number else cell.ljust(size)
        for column, size, cell in zip(columns, widths, cells, strict=True)
    )
    return ("  " + "  ".join(aligned)).rstrip()


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _printable(text: str) -> str:
    """Other people's texts must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
