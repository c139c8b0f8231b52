"""The relay deaf to a failing disk: it answers 202 whatever commit and checkpoint say. Tests must catch it."""

import sys
from contextlib import suppress

from relay.__main__ import main
from relay.errors import SpoolError
from relay.spool.store import Changes, Store

commit, checkpoint = Store.commit, Store.checkpoint


def deaf(store: Store, changes: Changes) -> None:
    with suppress(SpoolError):
        commit(store, changes)


def deaf_checkpoint(store: Store) -> None:
    with suppress(SpoolError):
        checkpoint(store)


Store.commit = deaf  # type: ignore[method-assign]
Store.checkpoint = deaf_checkpoint  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
