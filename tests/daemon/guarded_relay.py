"""The relay under a guard that makes every blocking call of its own code on the event loop an error."""

import asyncio
import os
import sys

from blockbuster import BlockBuster, BlockBusterFunction

import relay.__main__

GUARDED_TOO = ("os.fsync", "os.fdatasync", "os.open", "fcntl.flock")


def guard(*modules: str) -> BlockBuster:
    """Give a guard over the modules' code; it also knows the calls of a disk that blockbuster leaves out."""
    blockbuster = BlockBuster(list(modules))
    for name in GUARDED_TOO:
        blockbuster.functions[name] = BlockBusterFunction(None, name, scanned_modules=list(modules))
    return blockbuster


async def _block() -> None:
    os.fsync(0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--prove"]:
        guard("__main__").activate()
        asyncio.run(_block())
    guard("relay").activate()
    sys.exit(relay.__main__.main())
