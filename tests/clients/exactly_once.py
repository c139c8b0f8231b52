"""The one check that every SDK must pass: what it logged, what it sent and what arrived are the same events."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from daemon.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clients.tap import Tap
    from daemon.harness import CountingUpstream, Daemon


def check_exactly_once(
    sdk: str,
    logged: Sequence[str],
    *,
    tap: Tap,
    daemon: Daemon,
    upstream: CountingUpstream,
    figure: Callable[[str], None],
) -> list[dict[str, object]]:
    """Fail unless each event named in `logged` arrived once and each sent event's bytes unchanged; give what arrived.

    The SDK must have ended, or at least said that all is sent. What it sent beside `logged` (exposures, diagnostics)
    has to arrive just as exactly.
    """
    wait_until("every request is answered", lambda: _all_answered(tap))
    daemon.wait_drained()
    posts = tap.posts()
    assert {post.status for post in posts} == {202}, [post.answer for post in posts if post.status != 202]
    sent = Counter(event for post in posts for event in post.events())
    arrived = Counter(upstream.events)
    lost, added = sent - arrived, arrived - sent
    assert not lost, f"{lost.total()} of {sent.total()} sent events did not arrive as they were: {list(lost)[:3]}"
    assert not added, f"{added.total()} events arrived that were not sent so: {list(added)[:3]}"
    events = [json.loads(event) for event in upstream.events]
    counts = Counter(event["eventName"] for event in events)
    wrong = {name: counts[name] for name in logged if counts[name] != 1}
    assert not wrong, f"{len(wrong)} of {len(logged)} logged events did not arrive once: {list(wrong.items())[:10]}"
    figure(
        f"{sdk}: {len(logged)} logged, {len(logged)} arrived once, 0 twice, bytes unchanged; "
        f"{len(events) - len(logged)} of the SDK's own as well, in {len(posts)} requests"
    )
    return events


def _all_answered(tap: Tap) -> bool:
    try:
        tap.exchanges()
    except (AssertionError, ValueError):
        return False
    return True
