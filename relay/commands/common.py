"""What commands share: the `--config` option and the settings it leads to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from relay.config import load

if TYPE_CHECKING:
    import argparse

    from relay.config import Config


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Give a command `--config FILE`; without it, the defaults and the environment decide."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file of settings; RELAY_SECTION__KEY in the environment overrides it (default: no file)",
    )


def load_config(arguments: argparse.Namespace) -> Config:
    """Load the settings that `--config` and this process's environment name; raises ConfigError."""
    path: Path | None = arguments.config
    return load(path, os.environ)
