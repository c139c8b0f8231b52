"""`relay doctor`: checks a set-up without sending an event, and says of each finding what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import msgspec

from relay.commands.checkup.finding import Finding, ok
from relay.commands.checkup.folder import check_folder
from relay.commands.checkup.secrets import check_files
from relay.commands.checkup.upstream import check_upstream
from relay.commands.common import add_config_option, load_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from relay.config import Config

NAME: Final = "doctor"
HELP: Final = "check a set-up without sending an event, and say what to do about what is wrong"

_MARKS: Final = {"ok": ("✓", "32"), "warn": ("!", "33"), "fail": ("✗", "31")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="print each finding as a line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Look at everything; 1 where something fails. Raises ConfigError where the settings themselves are wrong."""
    config = load_config(arguments)
    levels = []
    for finding in _look(config):
        levels.append(finding.level)
        print(msgspec.json.encode(finding).decode() if arguments.json else _words(finding), flush=True)
    if not arguments.json:
        print(_sum_up(levels.count("fail"), levels.count("warn")))
    return 1 if "fail" in levels else 0


def _look(config: Config) -> Iterator[Finding]:
    yield ok("settings", "every one can be used")
    yield from check_folder(config)
    yield from check_files(config)
    yield from check_upstream(config)


def _words(finding: Finding) -> str:
    mark, colour = _MARKS[finding.level]
    mark = f"\x1b[{colour}m{mark}\x1b[0m" if sys.stdout.isatty() else mark
    cure = f"\n    → {finding.cure}" if finding.cure else ""
    return f"{mark} {finding.about}: {finding.text}{cure}"


def _sum_up(failed: int, warned: int) -> str:
    if failed:
        return f"\n{failed} to mend, {warned} to think about."
    return f"\nIt works; {warned} to think about." if warned else "\nAll is well."
