"""The relay with a bug that ends the thread that writes: the probes must tell."""

import sys

from relay.__main__ import main
from relay.spool.store import Changes, Store


def die(_store: Store, _changes: Changes) -> None:
    raise RuntimeError("a bug")


Store.commit = die  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
