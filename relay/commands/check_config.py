"""`relay check-config`: checks the settings and prints those in effect, nothing secret among them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from relay.commands.common import add_config_option, load_config
from relay.config import as_toml

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from relay.config import Config

NAME = "check-config"
HELP = "check the settings and print those in effect"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_config_option(parser)
    parser.add_argument("--explain", action="store_true", help="print each setting with what it is for and its bounds")


def run(arguments: argparse.Namespace) -> int:
    """Print the settings in effect as TOML; raises ConfigError where they are wrong.

    A named file that is not there is worth a line on stderr and no more: settings are often checked elsewhere than
    where the secrets are.
    """
    config = load_config(arguments)
    print(as_toml(config, explain=arguments.explain), end="")
    for line in _missing_files(config):
        print(f"relay: {line}", file=sys.stderr)
    return 0


def _missing_files(config: Config) -> Iterator[str]:
    upstream = config.upstream
    for key, path in (
        ("listen.api_keys_allowed_file", config.listen.api_keys_allowed_file),
        ("upstream.api_key_file", upstream.api_key_file),
        ("upstream.ca_file", upstream.ca_file),
        ("upstream.client_cert_file", upstream.client_cert_file),
        ("upstream.client_key_file", upstream.client_key_file),
    ):
        if path is None:
            continue
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            yield f"warning: {key} names {path}, which cannot be read here: {error.strerror}"
