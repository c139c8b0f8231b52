"""Calls the relay's commands as a person does, and lays queues on disk for them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spool.disk import SpoolOnDisk, append

if TYPE_CHECKING:
    from pathlib import Path

    from relay.spool import Record, Verdict


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict]:
        """Its output as objects, a line each."""
        return [json.loads(line) for line in self.out.splitlines()]


def call(config: Path, *words: str, stdin: str = "", code: int = 0) -> Said:
    """Run `relay WORDS --config CONFIG`; fails where it ends otherwise than with `code`."""
    command = [sys.executable, "-m", "relay", *words, "--config", str(config)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    said = Said(done.returncode, done.stdout, done.stderr)
    assert said.code == code, said
    assert "Traceback" not in said.err, said.err
    return said


def settings(folder: Path, **queue: object) -> Path:
    """Write a configuration whose queue lies beside it."""
    file = folder / "relay.toml"
    values = {"directory": str(folder / "queue")} | queue
    file.write_text("[queue]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return file


def lay(folder: Path, *live: Record, dead: tuple[tuple[Verdict, Record], ...] = ()) -> None:
    """Lay a queue on disk: the live chunks, each its own, and the dead letters."""

    async def write() -> None:
        async with SpoolOnDisk(folder / "queue").open() as spool:
            for verdict, one in dead:
                await append(spool, one)
                for lane in spool.lanes():
                    if refs := spool.lease(lane.lane, events_max=1 << 20, bytes_max=1 << 30):
                        await spool.bury(refs, verdict)
            for one in live:
                await append(spool, one)

    asyncio.run(write())
