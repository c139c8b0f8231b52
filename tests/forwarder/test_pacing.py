from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.forwarder.pacing import (
    CADENCE_SECONDS,
    REFUSED_EVENTS_MAX,
    REFUSED_LANES_MAX,
    SIZE_BYTES_MIN,
    Cadence,
    Refusals,
    Size,
)


def after(history: str) -> Refusals:
    """Lower case is an event of that lane refused, upper case a batch of it taken."""
    refusals = Refusals()
    for step in history:
        (refusals.refused if step.islower() else refusals.taken)(ord(step.lower()))
    return refusals


@pytest.mark.parametrize(
    ("history", "of_everything"),
    [
        ("", ""),
        ("aaaaaaaaa", ""),
        ("aaaaaaaaaa", "abc"),  # nobody was taken, so nobody is spared
        ("aaaaabbbbb", "abc"),
        ("aaaaaaaaaA", ""),
        ("aaaaaaaaaAa", ""),
        ("aaaaaaaaaB", ""),
        ("aaaaaaaaaBa", "a"),  # one key is refused throughout, others are taken
        ("aaaaaaaaaaB", "a"),
        ("aBaBaBaBaBaBaBaBaBaB", "a"),
        ("aBaBaBaBaBaBaBaBaBaBA", ""),
        ("abababababababababaC", "a"),
        ("ababababababababababC", "ab"),
    ],
)
def test_whether_upstream_minds_the_event_or_whatever_it_is_sent(history, of_everything):
    refusals = after(history)
    assert "".join(lane for lane in "abc" if refusals.of_everything(ord(lane))) == of_everything


@given(st.lists(st.integers(0, 3 * REFUSED_LANES_MAX), max_size=4 * REFUSED_LANES_MAX))
def test_what_is_remembered_of_refused_lanes_is_bounded(lanes):
    refusals = Refusals()
    for lane in lanes:
        refusals.refused(lane)
        assert len(refusals._of_lane) <= REFUSED_LANES_MAX


def test_a_lane_that_is_refused_all_the_time_is_not_forgotten_for_many_that_are_refused_once():
    refusals = Refusals()
    for at in range(REFUSED_EVENTS_MAX):
        refusals.refused(-1)
        for lane in range(REFUSED_LANES_MAX - 1):
            refusals.refused(at * REFUSED_LANES_MAX + lane)
    refusals.taken(0)
    assert refusals.of_everything(-1)


def test_a_refusal_of_what_is_small_teaches_no_size():
    size = Size(events_max=1000, bytes_max=4 << 20)
    assert not size.refused(0.0, SIZE_BYTES_MIN)
    assert size.bounds(0.0).bytes_max == 4 << 20
    assert size.refused(0.0, SIZE_BYTES_MIN + 1)
    assert size.bounds(0.0).bytes_max == SIZE_BYTES_MIN


def usual(seconds: float) -> Cadence:
    """One request in so many seconds, for two hours."""
    cadence = Cadence()
    for at in range(int(7200 / seconds)):
        cadence.started(at * seconds)
    return cadence


def pace(cadence: Cadence, now: float) -> float:
    """Seconds between two requests that start as soon as they may."""
    cadence.started(now)
    first = cadence.next_at(now)
    cadence.started(first)
    return cadence.next_at(now) - first


def test_catching_up_begins_at_the_usual_pace_and_a_tenth_and_grows_only_while_the_host_works():
    cadence = usual(10)
    cadence.broke(7200)
    assert pace(cadence, 7200) == pytest.approx(10 / 1.1, rel=0.02)
    cadence.broke(30_000)
    assert pace(cadence, 30_000) == pytest.approx(10 / 1.1, rel=0.02), "closed, it does not grow"
    cadence.mended(40_000)
    assert pace(cadence, 40_000 + CADENCE_SECONDS - 30) == pytest.approx(10 / 1.1, rel=0.02)
    assert pace(cadence, 40_000 + CADENCE_SECONDS) == pytest.approx(10 / 1.1**2, rel=0.02)
    assert pace(cadence, 40_000 + 10 * CADENCE_SECONDS) == pytest.approx(10 / 1.1**11, rel=0.02)
    cadence.broke(40_000 + 11 * CADENCE_SECONDS)
    cadence.mended(40_000 + 13 * CADENCE_SECONDS)
    assert pace(cadence, 40_000 + 14 * CADENCE_SECONDS) == pytest.approx(10 / 1.1**11, rel=0.02), "11 - 2 + 1"
    cadence.broke(50_000)
    cadence.mended(90_000)
    assert pace(cadence, 90_000) == pytest.approx(10 / 1.1, rel=0.02), "after a long outage it begins anew"
    assert 0 < pace(cadence, 4e9) < 0.1
    cadence.caught_up(4e9 + 1)
    assert cadence.next_at(4e9 + 1) == 4e9 + 1
