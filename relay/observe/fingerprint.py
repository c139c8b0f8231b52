"""How a key is called wherever people can read: eight hex digits that say which one, and not what it is."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

DEFAULT_LANE: Final = "default"
"""The lane of requests without a key; its real key may change under it, so it has no fingerprint."""

_DIGITS: Final = 8


@lru_cache(maxsize=1024)  # asked for several times a batch, for the same few keys
def fingerprint(key: str) -> str:
    """Name an API key for logs, metrics, the status page and the command line; `default` for the empty key.

    A plain SHA-256 prefix, with no secret of ours mixed in: the same key has the same name in every relay, after every
    restart and in tools that run without the daemon, and `printf %s KEY | sha256sum` finds it. It gives nothing away:
    keys are random and long, and 32 bits of their hash neither lead back to one nor confirm a guess worth having.
    """
    return hashlib.sha256(key.encode()).hexdigest()[:_DIGITS] if key else DEFAULT_LANE
