"""`relay dlq`: dead letters, by id, lane, reason or age; beside a running relay or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from relay.commands.queue_tools import common, exporting, letters

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

NAME: Final = "dlq"
HELP: Final = "list, show, export, replay and purge dead letters"

_VERBS: Final[tuple[tuple[str, Callable[[argparse.Namespace], int], str, str], ...]] = (
    ("list", letters.list_letters, "group them by key and reason, and list them", "relay dlq list --reason rejected"),
    ("show", letters.show, "show single ones with upstream's answer and their events", "relay dlq show 1207"),
    ("export", letters.export_letters, "write their events, one a line", "relay dlq export -o dead-letters.jsonl"),
    ("replay", letters.replay, "queue them anew", "relay dlq replay --lane 3f1c9a02 --reason expired"),
    ("purge", letters.purge, "drop them for good", "relay dlq purge --older-than 30d --yes"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs, each with its options and an example."""
    verbs = common.add_verbs(parser, _VERBS)
    for name in ("list", "export", "replay", "purge"):
        letters.add_choice(verbs[name])
    verbs["list"].add_argument("--limit", type=int, default=20, help="how many to list one by one (default: 20)")
    verbs["show"].add_argument("ids", nargs="+", type=int, metavar="ID", help="dead letters by their number")
    exporting.add_options(verbs["export"])
    for name in ("replay", "purge"):
        verbs[name].add_argument("--all", action="store_true", help="all of them")
    verbs["purge"].add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Do what the verb says."""
    return common.run_verb(arguments)
