from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.forwarder.pacing import REFUSED_EVENTS_MAX, REFUSED_LANES_MAX, Refusals


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
