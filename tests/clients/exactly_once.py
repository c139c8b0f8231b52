"""The one check that every SDK must pass: what it logged, what it sent and what arrived are the same events."""

from __future__ import annotations

import json
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from daemon.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clients.tap import Tap
    from daemon.harness import CountingUpstream, Daemon

LONG_NAME = "long " * 20
WITHHELD: dict[str, set[str]] = {
    "statsig-js": {LONG_NAME},  # these two cut names at 64 characters
    "statsig-node-lite": {LONG_NAME},
    "statsig-node-core": {"value NaN", "value Infinity", "value -Infinity", "metadata no numbers"},
}
"""What an SDK does not send under the name it was logged by, whoever listens."""


def check_exactly_once(
    sdk: str,
    logged: Sequence[str],
    *,
    tap: Tap,
    daemon: Daemon,
    upstream: CountingUpstream,
    figure: Callable[[str], None],
    where: str = "",
    name_of: Callable[[dict[str, Any]], str] = itemgetter("eventName"),
) -> list[dict[str, Any]]:
    """Fail unless each event named in `logged` arrived once and each sent event's bytes unchanged; give what arrived.

    The SDK must have ended, or at least said that all is sent. What it sent beside `logged` (exposures, diagnostics)
    has to arrive just as exactly.
    """
    wait_until("every request is answered", tap.settled)
    daemon.wait_drained()
    posts = tap.posts()
    assert {post.status for post in posts} == {202}, [post.answer for post in posts if post.status != 202]
    sent = Counter(event for post in posts for event in post.events())
    arrived = Counter(upstream.events)
    lost, added = sent - arrived, arrived - sent
    assert not lost, f"{lost.total()} of {sent.total()} sent events did not arrive as they were: {list(lost)[:3]}"
    assert not added, f"{added.total()} events arrived that were not sent so: {list(added)[:3]}"
    events = [json.loads(event) for event in upstream.events]
    counts = Counter(map(name_of, events))
    withheld = WITHHELD.get(sdk, set())
    assert not withheld & counts.keys(), "the SDK sends these now: expect them"
    due = [name for name in logged if name not in withheld]
    wrong = {name: counts[name] for name in due if counts[name] != 1}
    assert not wrong, f"{len(wrong)} of {len(due)} logged events did not arrive once: {list(wrong.items())[:10]}"
    kept_back = f" ({len(withheld)} of them withheld or renamed by the SDK)" if withheld else ""
    figure(
        f"{sdk}{where}: {len(logged)} logged{kept_back}, {len(due)} arrived once, 0 twice, bytes unchanged; "
        f"{len(events) - len(due)} others of the SDK likewise; {len(posts)} requests"
    )
    return events
