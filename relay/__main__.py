"""The doorbell: finds the command that was called for, and turns how it ended into an exit code.

A command's module is imported only when it is called, so that `relay status` never loads the daemon. Each one offers
`NAME`, `HELP`, `configure(parser)` and `run(arguments) -> exit code`.

    0    it went well            2    the settings, the folder or the command line need the operator
    1    it failed               130  Ctrl-C ended it            141  whoever read its output went away
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from relay import __version__
from relay.errors import ConfigError, RelayError, SpoolForeign, SpoolTooNew, SpoolUnfit

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED: Final = 1
OPERATOR_NEEDED: Final = 2
INTERRUPTED: Final = 130
OUTPUT_CLOSED: Final = 141


class Command(NamedTuple):
    """A command as the doorbell knows it before its module is imported."""

    name: str
    module: str
    help: str
    example: str


class CommandModule(Protocol):
    """What the module of every command offers."""

    NAME: str
    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own options."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and give the exit code."""
        ...


COMMANDS: Final = (
    Command(
        "run",
        "relay.commands.run",
        "run the daemon in the foreground",
        "relay run --config /etc/event-relay/config.toml",
    ),
    Command(
        "check-config",
        "relay.commands.check_config",
        "check the settings and print those in effect",
        "RELAY_QUEUE__BYTES_MAX=4GiB relay check-config --config config.toml",
    ),
    Command(
        "sink",
        "relay.commands.sink",
        "stand in for upstream: answer like Statsig, print each event",
        "relay sink --address 127.0.0.1:9465 --fail 503:0.1",
    ),
    Command(
        "demo",
        "relay.commands.demo",
        "show one event go in, onto disk and out",
        "relay demo",
    ),
    Command(
        "status",
        "relay.commands.status",
        "say how a running relay is doing",
        "relay status --watch",
    ),
    Command(
        "queue",
        "relay.commands.queue",
        "look at a queue and its lanes, export, check and mend it",
        "relay queue lanes",
    ),
    Command(
        "dlq",
        "relay.commands.dlq",
        "list, show, export, replay and purge dead letters",
        "relay dlq list",
    ),
    Command(
        "doctor",
        "relay.commands.doctor",
        "check a set-up without sending an event",
        "relay doctor --config /etc/event-relay/config.toml",
    ),
)


def main(argv: Sequence[str] | None = None, *, commands: Sequence[Command] = COMMANDS) -> int:
    """Run the command that `argv` (default: this process's arguments) names, and give the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        module, arguments = parse(words, commands)
        code = module.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(OPERATOR_NEEDED, error.problems)
    except (SpoolTooNew, SpoolForeign, SpoolUnfit) as error:
        return _fail(OPERATOR_NEEDED, [str(error)])
    except RelayError as error:
        return _fail(FAILED, [str(error)])
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return OUTPUT_CLOSED
    return code


def parse(words: Sequence[str], commands: Sequence[Command] = COMMANDS) -> tuple[CommandModule, argparse.Namespace]:
    """Find the command that `words` call, and its options; raises SystemExit where they are not understood."""
    parser, subparsers = _build_parser(commands)
    wanted = next((word for word in words if not word.startswith("-")), None)
    command = next((command for command in commands if command.name == wanted), None)
    if command is None:
        parser.parse_args(words)  # answers --help, --version and misspelled commands, and exits
        parser.print_help(sys.stderr)
        raise SystemExit(OPERATOR_NEEDED)
    module = cast("CommandModule", importlib.import_module(command.module))
    subparsers[command.name].description = module.HELP
    module.configure(subparsers[command.name])
    return module, parser.parse_args(words)


def _build_parser(
    commands: Sequence[Command],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="relay",
        description="Answers apps once their events are on disk, and forwards those until upstream has taken them.",
        epilog="examples:\n" + "\n".join(f"  {command.example}" for command in commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"event-relay {__version__} (Python {platform.python_version()})"
    )
    choices = parser.add_subparsers(title="commands", metavar="COMMAND")
    subparsers = {
        command.name: choices.add_parser(
            command.name,
            help=command.help,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for command in commands
    }
    return parser, subparsers


def _fail(code: int, lines: Sequence[str]) -> int:
    for line in lines:
        print(f"relay: {line}", file=sys.stderr)  # noqa: T201  the doorbell prints for the commands
    return code


def _forget_output() -> None:
    """Point stdout at nothing, or Python would meet the closed pipe once more while it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
