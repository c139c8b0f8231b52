"""What the supervisor reads where a container says its last word."""

from __future__ import annotations

from relay.app.stopping import Stop
from relay.errors import StoreFailed


async def test_a_stop_that_was_asked_for_says_what_is_left() -> None:
    stop = Stop()
    stop.ask("SIGTERM")
    assert stop.last_word(12) == "12 events are queued on disk; the next start delivers them\n"


async def test_an_end_that_nobody_asked_for_says_why_first() -> None:
    stop = Stop()
    stop.fail(StoreFailed("committing: SQLITE_IOERR_FSYNC: disk I/O error"))
    stop.fail(StoreFailed("closing the queue"))
    word = stop.last_word(3)
    assert word.startswith("could not go on: committing: SQLITE_IOERR_FSYNC: disk I/O error; 3 events are queued")
