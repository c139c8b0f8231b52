"""Everything the page, its script and the terminal show, put into words once; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from relay.admin.headline import Headline, Tone, headline, upstream_words
from relay.admin.units import about, clock, count, countdown, events, rate, share, size, span
from relay.observe import Snapshot, Trend  # noqa: TC001  msgspec needs them to decode a Report
from relay.observe.history import HISTORY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.observe import AttemptNumbers, LaneNumbers, LaneState

LANES_SHOWN_MAX: Final = 20
ATTEMPTS_SHOWN_MAX: Final = 12
WORDS_SHOWN_MAX: Final = 160
"""Characters of other people's texts in one cell."""

CHART_WIDTH: Final = HISTORY_SECONDS
CHART_HEIGHT: Final = 200
_HEADROOM: Final = 4
"""Keeps the highest point's stroke inside the picture."""

DEAD_LETTER_REASONS: Final = {
    "invalid": "the app sent it without a usable event name",
    "rejected": "upstream refused it with 400, 415 or 422",
    "too_large": "upstream refused it with 413, and it cannot be cut",
    "poison": "it alone made upstream fail, again and again",
    "expired": "it grew older than queue.age_max",
    "corrupt": "its bytes on disk were damaged",
}
"""What each reason means to somebody who reads it for the first time."""

_LANE_STATES: Final[dict[LaneState, tuple[str, Tone]]] = {
    "active": ("active", "good"),
    "backing_off": ("backing off", "warn"),
    "parked": ("parked", "warn"),
    "paused": ("paused", "warn"),
}
_HELD_UP: Final[tuple[str, Tone]] = ("waiting for upstream", "warn")
"""An active lane while the host's gate is closed: nothing is wrong with its key."""
_STATES_GRAVEST_FIRST: Final = ("parked", "paused", "backing_off", "active")


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its name."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "good"
    share: float | None = None
    """0 to 1, drawn as a bar."""


class Cell(msgspec.Struct, frozen=True):
    """One cell of a table; a tone marks a state."""

    text: str
    tone: Tone | None = None


class Column(msgspec.Struct, frozen=True):
    """The head of a column; numbers stand to the right."""

    name: str
    number: bool = False


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of as many cells as there are columns."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str
    """What to say instead of no rows."""
    note: str = ""


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """The depth curve as SVG paths in a box of CHART_WIDTH × CHART_HEIGHT, a second a unit."""

    line: str
    area: str
    top: str
    """The label of the upper edge."""
    description: str
    """The curve in words, for those who do not see it."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The report in words, ready to lay out."""

    title: str
    facts: tuple[Fact, ...]
    chart: Chart
    lanes: Table
    attempts: Table
    dead_letters: Table
    footer: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `/status` answers: a sentence, the numbers behind it, and both in words."""

    sentence: str
    headline: Headline
    snapshot: Snapshot
    trend: Trend
    depth: tuple[tuple[float, int], ...]
    """(seconds ago, events queued), oldest first, fifteen minutes at most."""
    view: View


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name.lstrip("#"), number=name.startswith("#")) for name in names)


_LANE_COLUMNS: Final = _columns("Key", "State", "#Events", "#Size", "#Oldest", "#Next try", "Why")
_ATTEMPT_COLUMNS: Final = _columns("At (UTC)", "Outcome", "#Events", "#Size", "#Took", "Key", "Said")
_DEAD_LETTER_COLUMNS: Final = _columns("Reason", "#Events", "Meaning")


def make_report(snapshot: Snapshot, trend: Trend, depth: Sequence[tuple[float, int]]) -> Report:
    """Put a moment into words."""
    said = headline(snapshot, trend)
    view = View(
        title=_title(snapshot),
        facts=_facts(snapshot, trend),
        chart=_chart(depth),
        lanes=_lanes(snapshot),
        attempts=_attempts(snapshot.forward.attempts),
        dead_letters=_dead_letters(snapshot),
        footer=f"{clock(snapshot.now)} UTC · version {snapshot.version} · "
        f"up {span(snapshot.now - snapshot.started_at)} · to {snapshot.upstream}",
    )
    return Report(sentence=said.text, headline=said, snapshot=snapshot, trend=trend, depth=tuple(depth), view=view)


def _title(snapshot: Snapshot) -> str:
    depth = snapshot.queue.events
    return f"{count(depth)} queued · event relay" if depth else "event relay"


def _facts(snapshot: Snapshot, trend: Trend) -> tuple[Fact, ...]:
    queue = snapshot.queue
    return (
        Fact(label="Queued", value=events(queue.events), note=f"{count(queue.in_flight_events)} in flight"),
        _oldest(snapshot),
        _room(snapshot),
        Fact(
            label="Accepted",
            value=rate(trend.accepted_per_second),
            note=f"{count(queue.enqueued_events)} in all",
        ),
        _delivered(snapshot, trend),
        _dead(snapshot),
        _gate(snapshot),
        _disk(snapshot),
    )


def _oldest(snapshot: Snapshot) -> Fact:
    age, parked = snapshot.oldest_age_seconds(), snapshot.oldest_parked_age_seconds()
    return Fact(
        label="Oldest event",
        value=span(age) if age else "–",
        note=f"{span(parked)} in a parked lane"
        if parked
        else "accepted, not delivered yet"
        if age
        else "nothing waits",
    )


def _room(snapshot: Snapshot) -> Fact:
    queue = snapshot.queue
    fill = queue.fill()
    return Fact(
        label="Room used",
        value=share(fill),
        note=f"{size(queue.bytes)} of {size(queue.capacity_bytes)}",
        tone="good" if fill < 0.75 else "warn" if fill < 0.9 else "bad",  # noqa: PLR2004  the alert stands at 90 %
        share=min(1.0, fill),
    )


def _delivered(snapshot: Snapshot, trend: Trend) -> Fact:
    last = snapshot.forward.last_success_at
    note = "nothing yet" if last is None else f"last {about(snapshot.now - last)} ago"
    return Fact(
        label="Delivered",
        value=rate(trend.delivered_per_second),
        note=f"{count(snapshot.queue.acked_events)} in all, {note}",
    )


def _dead(snapshot: Snapshot) -> Fact:
    queue = snapshot.queue
    dropped = sum(queue.dropped_events.values())
    note = f"{count(dropped)} dropped for good" if dropped else "none was dropped"
    return Fact(
        label="Dead letters", value=count(queue.dead_events), note=note, tone=_alarm(queue.dead_events + dropped)
    )


def _gate(snapshot: Snapshot) -> Fact:
    forward = snapshot.forward
    if forward.closed():
        wait = forward.next_try_in_seconds
        return Fact(
            label="Upstream",
            value="closed",
            note=f"next try in {countdown(wait)}" if wait else "trying now",
            tone="warn",
        )
    return Fact(
        label="Upstream",
        value="open" if not forward.backoff_seconds else "backing off",
        note=f"{forward.in_flight_requests} of {forward.gate_limit} requests under way",
        tone=_alarm(forward.backoff_seconds),
    )


def _disk(snapshot: Snapshot) -> Fact:
    queue = snapshot.queue
    low = queue.disk_free_bytes < queue.disk_free_bytes_min
    note = "in memory: a reboot loses the queue" if queue.volatile else f"of {size(queue.disk_size_bytes)}"
    tone: Tone = "bad" if low else _alarm(queue.volatile)
    return Fact(label="Disk free", value=size(queue.disk_free_bytes), note=note, tone=tone)


def _alarm(wrong: float) -> Tone:
    return "warn" if wrong else "good"


def _ceiling(highest: int) -> int:
    """The upper edge of the curve: 1, 2 or 5 times a power of ten, at least 10."""
    edge = 10
    while edge < highest:
        edge = edge * 5 // 2 if str(edge)[0] == "2" else edge * 2
    return edge


def _chart(depth: Sequence[tuple[float, int]]) -> Chart:
    highest = max(number for _, number in depth)
    top = _ceiling(highest)
    points = [
        (round(CHART_WIDTH - ago, 1), round(CHART_HEIGHT - number / top * (CHART_HEIGHT - _HEADROOM), 1))
        for ago, number in depth
    ]
    line = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
    area = f"{line} L{points[-1][0]:g} {CHART_HEIGHT} L{points[0][0]:g} {CHART_HEIGHT} Z"
    description = (
        f"Events queued in the last {about(depth[0][0])}: {count(depth[-1][1])} now, {count(highest)} at most."
    )
    return Chart(line=line, area=area, top=count(top), description=description)


def _lanes(snapshot: Snapshot) -> Table:
    order = sorted(snapshot.lanes, key=lambda lane: (_STATES_GRAVEST_FIRST.index(lane.state), -lane.oldest_age_seconds))
    more = len(order) - LANES_SHOWN_MAX
    return Table(
        name="Lanes",
        columns=_LANE_COLUMNS,
        rows=tuple(_lane(lane, closed=snapshot.forward.closed()) for lane in order[:LANES_SHOWN_MAX]),
        empty="No key has events waiting.",
        note=f"{count(more)} more, all later in this order." if more > 0 else "",
    )


def _lane(lane: LaneNumbers, *, closed: bool) -> tuple[Cell, ...]:
    state, tone = _HELD_UP if closed and lane.state == "active" else _LANE_STATES[lane.state]
    return (
        Cell(lane.fingerprint),
        Cell(state, tone),
        Cell(count(lane.events)),
        Cell(size(lane.bytes)),
        Cell(span(lane.oldest_age_seconds)),
        Cell("" if lane.next_try_in_seconds is None else countdown(lane.next_try_in_seconds)),
        Cell(_excerpt(lane.error)),
    )


def _attempts(attempts: Sequence[AttemptNumbers]) -> Table:
    return Table(
        name="Last attempts",
        columns=_ATTEMPT_COLUMNS,
        rows=tuple(_attempt(attempt) for attempt in attempts[:ATTEMPTS_SHOWN_MAX]),
        empty="Nothing has been sent yet.",
    )


def _attempt(attempt: AttemptNumbers) -> tuple[Cell, ...]:
    good = attempt.outcome == "success"
    words = f"delivered, {attempt.status}" if good else upstream_words(attempt).removeprefix("upstream ")
    return (
        Cell(clock(attempt.ended_at)),
        Cell(words, "good" if good else "warn"),
        Cell(count(attempt.events)),
        Cell(size(attempt.bytes)),
        Cell(span(attempt.seconds)),
        Cell(attempt.fingerprint),
        Cell("" if good else _excerpt(attempt.detail)),
    )


def _dead_letters(snapshot: Snapshot) -> Table:
    queue = snapshot.queue
    found = {reason: number for reason, number in queue.dead_lettered_events.items() if number}
    rows = [
        (Cell(reason, "warn"), Cell(count(number)), Cell(DEAD_LETTER_REASONS.get(reason, "")))
        for reason, number in sorted(found.items(), key=lambda item: -item[1])
    ]
    if queue.dead_recovered_events:
        rows.append((Cell("earlier"), Cell(count(queue.dead_recovered_events)), Cell("set aside before this start")))
    note = f"{events(queue.dead_events)} held now. To look at them: relay dlq list."
    return Table(
        name="Dead letters",
        columns=_DEAD_LETTER_COLUMNS,
        rows=tuple(rows),
        empty="None: upstream has refused no event for good.",
        note=note if rows else "",
    )


def _excerpt(words: str) -> str:
    return words if len(words) <= WORDS_SHOWN_MAX else words[: WORDS_SHOWN_MAX - 1] + "…"
