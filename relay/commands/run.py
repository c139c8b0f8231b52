"""`relay run`: the daemon, in the foreground."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from relay.commands.common import add_config_option, load_config

if TYPE_CHECKING:
    import argparse

NAME: Final = "run"
HELP: Final = "run the daemon in the foreground"


def configure(parser: argparse.ArgumentParser) -> None:
    """Only --config: all else is configuration."""
    add_config_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop, 1 where a room could not go on."""
    config = load_config(arguments)
    from relay.app import serve  # noqa: PLC0415 – a bad configuration is told before the daemon is loaded
    from relay.logs import close_logs, configure_logs  # noqa: PLC0415

    configure_logs(config.log.level, config.log.format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(config, lambda: load_config(arguments)))
    finally:
        close_logs()


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Prefer uvloop, which answers small requests at about two thirds of the cost; None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 – absent on some platforms
    except ImportError:
        return None
    return uvloop.Loop
