"""The sentence an operator reads first: what state the relay is in, and what that means for the events; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from relay.admin.units import about, count, countdown, events, rate, size, span
from relay.observe import Trend
from relay.observe.fingerprint import DEFAULT_LANE

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.observe import AttemptNumbers, LaneNumbers, Snapshot

Tone = Literal["good", "busy", "warn", "bad"]
"""All is well; at work, nothing to do; look when you have time; look now."""

LATE_SECONDS: Final = 30
"""The age from which waiting events count as a backlog: an attempt that times out takes as long."""
NEARLY_FULL: Final = 0.9
FULL: Final = 0.97
"""The high-water mark refuses a request that would not fit, so a full queue is seldom full to the byte."""
FAR_SECONDS: Final = 7 * 86400
"""A queue that fills later than this is no news."""

_LANE_OUTCOMES: Final = ("success", "auth", "rejected")
"""These say nothing against the host."""
_LANE_STATUSES: Final = (425, 429)

_WORDS: Final = {
    "success": "upstream took the events",
    "timeout": "upstream does not answer in time",
    "connect": "upstream cannot be reached",
    "ambiguous": "upstream broke off before it answered",
    "bad_answer": "upstream answers{status}, but not as Statsig does",
    "auth": "upstream refuses the key with{status}",
    "rejected": "upstream refuses the events with{status}",
}


class Headline(msgspec.Struct, frozen=True):
    """A state and what follows from it."""

    tone: Tone
    lead: str
    """The first sentence: the state."""
    rest: str = ""
    """What it means, what comes next, what to do."""

    @property
    def text(self) -> str:
        """Everything as one line."""
        return f"{self.lead} {self.rest}".rstrip()


def headline(snapshot: Snapshot, trend: Trend | None = None) -> Headline:
    """Say how things stand. The gravest state speaks; dead letters and broken books are added to whatever it is."""
    trend = trend or Trend()
    said = next(found for found in (rule(snapshot, trend) for rule in _RULES) if found is not None)
    queue = snapshot.queue
    tone, more = said.tone, [said.rest]
    if queue.dead_events:
        tone = "warn" if tone in ("good", "busy") else tone
        more.append(_dead_letters(queue.dead_events))
    if drift := queue.drift_events():
        tone = "bad"
        more.append(f"The books are off by {events(drift)}: that is a bug of the relay, please report it.")
    return Headline(tone, said.lead, _join(*more))


# One rule a state, the gravest first; each gives its sentence or passes.


def _starting(snapshot: Snapshot, _: Trend) -> Headline | None:
    if snapshot.phase != "starting":
        return None
    return Headline("busy", "Starting: the queue is being opened.", "Until then apps get 503, and send again.")


def _draining(snapshot: Snapshot, _: Trend) -> Headline | None:
    if snapshot.phase != "draining":
        return None
    left = snapshot.queue.events
    rest = (
        f"{events(left)} left, {_safe(snapshot)}; the next start delivers what remains." if left else "Nothing is left."
    )
    return Headline("busy", "Stopping: delivering what it can.", rest)


def _disk_low(snapshot: Snapshot, _: Trend) -> Headline | None:
    queue = snapshot.queue
    if queue.ready or queue.disk_free_bytes >= queue.disk_free_bytes_min:
        return None
    lead = "Disk low: new events are refused with 503."
    room = f"{size(queue.disk_free_bytes)} free, {size(queue.disk_free_bytes_min)} must stay free."
    return Headline("bad", lead, f"{room} What is queued is {_safe(snapshot)}. Free some disk space.")


def _full(snapshot: Snapshot, trend: Trend) -> Headline | None:
    queue = snapshot.queue
    if queue.ready or queue.fill() < FULL:
        return None
    why = _upstream_trouble(snapshot)
    pace = f"{_capital(why)}. {_next_try(snapshot)}" if why else f"Delivering {rate(trend.delivered_per_second)}."
    lead = "Full: new events are refused with 503."
    room = f"{size(queue.bytes)} of {size(queue.capacity_bytes)} used, {_safe(snapshot)}."
    return Headline("bad", lead, _join(room, pace))


def _refusing(snapshot: Snapshot, _: Trend) -> Headline | None:
    queue = snapshot.queue
    if queue.ready:
        return None
    lead = "Not accepting: new events are refused with 503."
    why = f"{_capital(queue.refusal).rstrip('.')}." if queue.refusal else "They cannot be made durable now."
    return Headline("bad", lead, f"{why} The log says more.")


def _recovering(snapshot: Snapshot, _: Trend) -> Headline | None:
    queue = snapshot.queue
    if not queue.recovering:
        return None
    rest = f"{events(queue.recovered_events)} found so far. New events are accepted and {_safe(snapshot)}."
    return Headline("busy", "Recovering: reading what an earlier run left.", rest)


def _backing_off(snapshot: Snapshot, trend: Trend) -> Headline | None:
    why = _upstream_trouble(snapshot)
    if not why:
        return None
    cause = _last_trouble(snapshot)
    wrong_host = cause is not None and cause.outcome in ("misconfigured", "bad_answer")
    rest = [f"Events are accepted and {_safe(snapshot)}."]
    if wrong_host:
        rest.append("Check upstream.url and what stands between.")
    rest += [_next_try(snapshot), _until_full(trend)]
    return Headline("bad" if wrong_host else "warn", f"Backing off: {why}.", _join(*rest))


def _parked(snapshot: Snapshot, trend: Trend) -> Headline | None:
    lanes = [lane for lane in snapshot.lanes if lane.state == "parked"]
    if not lanes:
        return None
    rest = (
        _why(lanes),
        f"{_waiting(lanes)} until {'it works' if len(lanes) == 1 else 'they work'} again, {_safe(snapshot)}.",
        _lane_try(lanes, "Next probe"),
        "All other keys are delivered." if len(snapshot.lanes) > len(lanes) else "",
        _until_full(trend),
    )
    are = "is" if len(lanes) == 1 else "are"
    return Headline("warn", f"Parked: {_keys(lanes)} {are} refused.", _join(*rest))


def _nearly_full(snapshot: Snapshot, trend: Trend) -> Headline | None:
    queue = snapshot.queue
    if queue.fill() < NEARLY_FULL:
        return None
    pace = f"Accepting {rate(trend.accepted_per_second)}, delivering {rate(trend.delivered_per_second)}."
    lead = f"Nearly full: {size(queue.bytes)} of {size(queue.capacity_bytes)} used."
    return Headline("warn", lead, _join(pace, _until_full(trend)))


def _slowed(snapshot: Snapshot, _: Trend) -> Headline | None:
    lanes = [lane for lane in snapshot.lanes if lane.state == "backing_off"]
    if not lanes:
        return None
    waits = "waits" if len(lanes) == 1 else "wait"
    rest = _join(_why(lanes), f"{_waiting(lanes)}, {_safe(snapshot)}.", _lane_try(lanes, "Next try"))
    return Headline("warn", f"Slowed: {_keys(lanes)} {waits} before the next try.", rest)


def _catching_up(snapshot: Snapshot, trend: Trend) -> Headline | None:
    age = snapshot.oldest_age_seconds()
    if age < LATE_SECONDS or not trend.delivered_per_second:
        return None
    gain = trend.delivered_per_second - trend.accepted_per_second
    done = f"Done in about {about(snapshot.queue.events / gain)}." if gain > 0 else "More comes in than goes out."
    rest = f"Delivering {rate(trend.delivered_per_second)}, the oldest event is {span(age)} old. {done}"
    return Headline("busy", f"Catching up: {_wait(snapshot.queue.events)}.", _join(rest, _until_full(trend)))


def _stuck(snapshot: Snapshot, trend: Trend) -> Headline | None:
    age = snapshot.oldest_age_seconds()
    if age < LATE_SECONDS:
        return None
    rest = f"Nothing was delivered lately; the oldest event is {span(age)} old and {_safe(snapshot)}."
    return Headline("warn", f"Waiting for upstream: {_wait(snapshot.queue.events)}.", _join(rest, _until_full(trend)))


def _paused(snapshot: Snapshot, _: Trend) -> Headline | None:
    lanes = [lane for lane in snapshot.lanes if lane.state == "paused"]
    if not lanes:
        return None
    which = lanes[0].fingerprint if len(lanes) == 1 else "LANE"
    rest = f"{_waiting(lanes)}, {_safe(snapshot)}. To let them go: relay queue resume {which}."
    return Headline("warn", f"Paused: an operator holds {_keys(lanes)}.", rest)


def _flowing(snapshot: Snapshot, trend: Trend) -> Headline | None:
    queue = snapshot.queue
    if not (queue.events or trend.accepted_per_second or trend.delivered_per_second):
        return None
    waiting = "Nothing waits."
    if queue.events:
        age = snapshot.oldest_age_seconds()
        waiting = f"{_capital(_wait(queue.events))}{f', the oldest for {span(age)}' if age else ''}."
    pace = f"{rate(trend.accepted_per_second)} in, {rate(trend.delivered_per_second)} out."
    return Headline("good", "Flowing: events go out as they come in.", f"{pace} {waiting}")


def _idle(snapshot: Snapshot, _: Trend) -> Headline:
    if snapshot.forward.last_success_at is not None:
        return Headline("good", "Idle: nothing waits.", f"Last delivery {_ago(snapshot)} ago.")
    if snapshot.queue.enqueued_events:
        return Headline("good", "Idle: nothing waits.")
    return Headline("good", "Idle: no event has come yet.", "Point an SDK here and its events show up on this page.")


_RULES: Final[tuple[Callable[[Snapshot, Trend], Headline | None], ...]] = (
    _starting,
    _draining,
    _disk_low,
    _full,
    _refusing,
    _recovering,
    _backing_off,
    _parked,
    _nearly_full,
    _slowed,
    _catching_up,
    _stuck,
    _paused,
    _flowing,
    _idle,
)


def upstream_words(attempt: AttemptNumbers) -> str:
    """Say what upstream did in this attempt, as a clause: `upstream answers 503`."""
    status = f" {attempt.status}" if attempt.status else ""
    known = _WORDS.get(attempt.outcome)
    if known is None:
        return f"upstream answers{status}" if status else "upstream fails"
    return known.format(status=status)


def _last_trouble(snapshot: Snapshot) -> AttemptNumbers | None:
    """The newest attempt that speaks against the host."""
    against = (
        attempt
        for attempt in snapshot.forward.attempts
        if attempt.outcome not in _LANE_OUTCOMES and attempt.status not in _LANE_STATUSES
    )
    return next(against, None)


def _upstream_trouble(snapshot: Snapshot) -> str:
    """Why the host is being left alone, as a clause; empty where it is not."""
    forward = snapshot.forward
    if not (forward.closed() or forward.backoff_seconds):
        return ""
    cause = _last_trouble(snapshot)
    return upstream_words(cause) if cause else "upstream fails"


def _next_try(snapshot: Snapshot) -> str:
    wait = snapshot.forward.next_try_in_seconds
    if wait is None:
        return ""
    return f"Next try in {countdown(wait)}." if wait > 0 else "Trying now."


def _until_full(trend: Trend) -> str:
    seconds = trend.seconds_until_full
    return f"Full in {about(seconds)} at this rate." if seconds and seconds < FAR_SECONDS else ""


def _safe(snapshot: Snapshot) -> str:
    return "held in memory, which a reboot loses" if snapshot.queue.volatile else "safe on disk"


def _keys(lanes: list[LaneNumbers]) -> str:
    if len(lanes) > 1:
        return f"{count(len(lanes))} keys"
    name = lanes[0].fingerprint
    return "the default key" if name == DEFAULT_LANE else f"the key {name}"


def _why(lanes: list[LaneNumbers]) -> str:
    """One lane's own reason; those of many stand in the table."""
    error = lanes[0].error if len(lanes) == 1 else ""
    return f"{_capital(error).rstrip('.')}." if error else ""


def _lane_try(lanes: list[LaneNumbers], what: str) -> str:
    tries = [lane.next_try_in_seconds for lane in lanes if lane.next_try_in_seconds is not None]
    return f"{what} in {countdown(min(tries))}." if tries else ""


def _waiting(lanes: list[LaneNumbers]) -> str:
    return _capital(_wait(sum(lane.events for lane in lanes)))


def _wait(number: int) -> str:
    return f"{events(number)} wait{'s' if number == 1 else ''}"


def _ago(snapshot: Snapshot) -> str:
    return span(snapshot.now - (snapshot.forward.last_success_at or snapshot.now))


def _dead_letters(number: int) -> str:
    are = "is a dead letter" if number == 1 else "are dead letters"
    return f"{events(number)} {are}, which upstream will never take: relay dlq list."


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
