"""The relay deaf to a failing disk: it answers 202 whatever the commit says. The fault tests must catch it."""

import sys
from contextlib import suppress

from relay.__main__ import main
from relay.errors import SpoolError
from relay.spool.store import Changes, Store

commit = Store.commit


def deaf(store: Store, changes: Changes) -> None:
    with suppress(SpoolError):
        commit(store, changes)


Store.commit = deaf  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
