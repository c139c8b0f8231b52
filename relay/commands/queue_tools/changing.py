"""`relay queue`'s pause, resume and rekey: an operator's hand on a lane."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

from relay.commands.queue_tools import common
from relay.commands.queue_tools.looking import print_lanes
from relay.control import Done, Pause, Rekey, Resume
from relay.keyfile import KeyFile
from relay.observe import fingerprint

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from relay.control.protocol import Request


def pause(arguments: argparse.Namespace) -> int:
    """Hold a lane: its events are accepted and kept."""
    return _change(arguments, Pause(arguments.lane))


def resume(arguments: argparse.Namespace) -> int:
    """Let a lane go on."""
    return _change(arguments, Resume(arguments.lane))


def rekey(arguments: argparse.Namespace) -> int:
    """Have what a lane holds travel under another key, which is never taken from the command line."""
    key = _key_from(arguments.key_file)
    code = _change(arguments, Rekey(arguments.lane, key))
    if not arguments.json:
        print(f"What these lanes hold travels under key {fingerprint(key)} from now on; new events keep their own.")
    return code


def _change(arguments: argparse.Namespace, request: Request) -> int:
    reply = common.change(arguments, request)
    assert isinstance(reply, Done), "only Lanes is answered with a list"
    if arguments.json:
        for lane in reply.lanes:
            common.print_json(lane)
    else:
        print_lanes(reply.lanes)
    return 0


def _key_from(path: Path | None) -> str:
    if path is None:
        if not sys.stdin.isatty():
            key = sys.stdin.readline().strip()
        else:
            key = getpass.getpass("New API key (not shown): ").strip()
    else:
        file = KeyFile(path)
        try:
            file.load()
        except OSError as exc:
            raise common.ToolFailed(f"{path} cannot be read: {exc.strerror}") from exc
        key = file.first
    if not key:
        raise common.ToolFailed("no key was given; name a file with --key-file, or give it on standard input")
    return key
