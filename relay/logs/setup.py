"""Builds the way of a log line, from a call of structlog or of a library's logging to the writer."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from relay import __version__
from relay.logs.repeats import OnceAMinute, summarise_all
from relay.logs.scrub import scrub
from relay.logs.writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import TextIO

    from structlog.typing import Processor

SERVICE: Final = "event-relay"
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
LIBRARY_LEVEL: Final = logging.WARNING
FIRST_FIELDS: Final = ("timestamp", "level", "event")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class _Logs:
    """Logging as it is set up now."""

    def __init__(self, level: int, stream: TextIO, *, console: bool) -> None:
        self.level = level
        self.writer = LineWriter(stream, tidy=self._tidy)
        self.handler = _LibraryHandler(OnceAMinute())
        structlog.configure(
            processors=self._processors(stream, console=console),
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            logger_factory=lambda *_: _Destination(self.writer),
            cache_logger_on_first_use=False,  # so that a new set-up reaches loggers that exist
        )
        logging.getLogger().addHandler(self.handler)
        logging.getLogger().setLevel(LIBRARY_LEVEL)

    def close(self) -> None:
        """Write what is held back and what waits; the libraries' lines then go where they went before."""
        logging.getLogger().removeHandler(self.handler)
        summarise_all(early=True)
        self.writer.close()
        structlog.reset_defaults()

    def _processors(self, stream: TextIO, *, console: bool) -> list[Processor]:
        stamp: list[Processor] = [
            self._filter,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # plain: no values of local variables, which may be events
            scrub,
        ]
        if console:
            colors = stream.isatty() and not os.environ.get("NO_COLOR")
            plain = structlog.dev.plain_traceback
            return [*stamp, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
        return [*stamp, _render_json]

    def _filter(self, _logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if LEVELS[method] < self.level:
            raise structlog.DropEvent
        return fields

    def _tidy(self) -> None:
        dropped = self.writer.take_dropped()
        if dropped:
            structlog.get_logger().warning("log_lines_dropped", lines=dropped)
        summarise_all()


class _Destination:
    """What structlog takes for a logger: each of its methods gets a finished line."""

    def __init__(self, writer: LineWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.put


class _LibraryHandler(logging.Handler):
    """Takes what libraries log the same way, the first of a kind and then one a minute."""

    def __init__(self, repeats: OnceAMinute) -> None:
        super().__init__(LIBRARY_LEVEL)
        self._repeats = repeats

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record, with its traceback where it has one."""
        log = structlog.get_logger()
        emit = log.error if record.levelno >= logging.ERROR else log.warning
        error = record.exc_info[1] if record.exc_info else None
        kind = (record.name, str(record.msg), type(error))
        if type(error).__module__ == "aiohttp.http_exceptions":
            # A client that speaks no HTTP. The error quotes what it sent, which may be a key, so only its type is told.
            self._repeats.say(log.warning, "client_speaks_no_http", per=kind, error=type(error).__name__)
            return
        self._repeats.say(
            emit, "library_message", per=kind, logger=record.name, message=_message(record), exc_info=error
        )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  arguments that do not fit their format must not reach whoever logged
        return str(record.msg)


_logs: _Logs | None = None


def configure_logs(level: str, format: str, *, stream: TextIO | None = None) -> None:  # noqa: A002  the setting's name
    """Send all logs to `stream` (default: stderr) from `level` up, as `console`, `json`, or by `auto` what suits it.

    They are written by a thread; `close_logs`, at the latest at exit, waits for it. A second call replaces the first.
    """
    global _logs  # noqa: PLW0603  logging is one for the process, as structlog's and logging's own set-up are
    close_logs()
    target = stream or sys.stderr
    console = format == "console" or (format == "auto" and target.isatty())
    _logs = _Logs(LEVELS[level], target, console=console)


def set_level(level: str) -> None:
    """Change from where on lines are written, for loggers that exist too; without a set-up, nothing."""
    if _logs is not None:
        _logs.level = LEVELS[level]


@atexit.register
def close_logs() -> None:
    """Write what waits, and take the set-up back; without one, nothing."""
    global _logs
    logs, _logs = _logs, None
    if logs is not None:
        logs.close()


def _render_json(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    line = {name: fields.pop(name, None) for name in FIRST_FIELDS}
    line |= {"service.name": SERVICE, "service.version": __version__}
    return _encode(line | dict(fields))
