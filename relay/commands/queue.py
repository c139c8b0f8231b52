"""`relay queue`: looks at a queue and its lanes, beside a running relay or without one, and mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from relay.commands.queue_tools import changing, common, exporting, looking, mending, verifying

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

NAME: Final = "queue"
HELP: Final = "look at a queue and its lanes, export, check and mend it; safe beside a running relay"

_VERBS: Final[tuple[tuple[str, Callable[[argparse.Namespace], int], str, str], ...]] = (
    ("stats", looking.stats, "how much is queued, and what it takes on disk", "relay queue stats --json"),
    ("peek", looking.peek, "show the oldest events", "relay queue peek --lane 3f1c9a02 --chunks 5"),
    ("export", exporting.export_queue, "write what is queued, an event a line", "relay queue export -o events.jsonl"),
    ("verify", verifying.verify, "check every chunk and the file; 1 where something is wrong", "relay queue verify"),
    ("lanes", looking.lanes, "list the lanes and what each waits for", "relay queue lanes"),
    ("pause", changing.pause, "hold a lane, over restarts too", "relay queue pause 3f1c9a02"),
    ("resume", changing.resume, "let a lane go on, at once", "relay queue resume 3f1c9a02"),
    (
        "rekey",
        changing.rekey,
        "give a revoked key's backlog another key",
        "relay queue rekey 3f1c9a02 --key-file key",
    ),
    ("compact", mending.compact, "give room inside the file back to the disk; offline", "relay queue compact"),
    ("repair", mending.repair, "salvage a damaged file into a new one; offline", "relay queue repair"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs, each with its options and an example."""
    verbs = common.add_verbs(parser, _VERBS)
    for name in ("peek", "export"):
        verbs[name].add_argument(
            "--lane", default="", help="only of this lane: a key's fingerprint, `default`, or a number"
        )
    verbs["peek"].add_argument("--chunks", type=int, default=10, help="how many chunks (default: 10)")
    verbs["peek"].add_argument("--events", type=int, default=3, help="how many events of each (default: 3)")
    exporting.add_options(verbs["export"])
    verbs["verify"].add_argument(
        "--full", action="store_true", help="run SQLite's own check too where a relay runs and the file is large"
    )
    verbs["repair"].add_argument("--force", action="store_true", help="do it to a file that looks sound")
    for name in ("pause", "resume", "rekey"):
        verbs[name].add_argument("lane", help="a key's fingerprint, `default`, or a number, as `lanes` lists them")
    verbs["rekey"].add_argument(
        "--key-file", type=Path, metavar="FILE", help="file with the new key (default: standard input)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the verb says."""
    return common.run_verb(arguments)
