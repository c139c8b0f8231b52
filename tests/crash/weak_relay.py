"""The relay with its durability taken out: what the power-loss test must catch, or it could catch nothing."""

import sys

from relay.__main__ import main
from relay.spool.store import ChunkTable

ChunkTable.synchronous = "NORMAL"

if __name__ == "__main__":
    sys.exit(main())
