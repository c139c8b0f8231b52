from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.observe import History, QueueNumbers, Snapshot, fingerprint
from relay.observe.histogram import Histogram
from relay.observe.history import HISTORY_SECONDS, SAMPLE_SECONDS, seconds_until_full
from relay.observe.observer import (
    ANSWER_BUCKETS,
    ATTEMPT_BUCKETS,
    COMMIT_BUCKETS,
    DELAY_BUCKETS,
    EVENTS_BUCKETS,
    LAG_BUCKETS,
)

counts = st.integers(0, 10**9)


@given(recovered=counts, enqueued=counts, dead_recovered=counts, data=st.data())
def test_books_that_balance_have_no_drift_and_every_loss_shows(recovered, enqueued, dead_recovered, data):
    def some(bound: int) -> int:
        return data.draw(st.integers(0, bound))

    dead = some(recovered + enqueued)
    acked = some(recovered + enqueued - dead)
    replayed = some(dead + dead_recovered)
    dropped = some(dead + dead_recovered - replayed)
    queue = {
        "recovered_events": recovered,
        "enqueued_events": enqueued,
        "acked_events": acked,
        "events": recovered + enqueued - acked - dead,
        "dead_recovered_events": dead_recovered,
        "dead_lettered_events": {"poison": dead // 3, "expired": dead - dead // 3},
        "dead_replayed_events": replayed,
        "dropped_events": {"purged": dropped},
        "dead_events": dead + dead_recovered - replayed - dropped,
    }
    assert QueueNumbers(**queue).drift_events() == 0
    for field in ("recovered_events", "enqueued_events", "acked_events", "events", "dead_events"):
        assert QueueNumbers(**queue | {field: queue[field] + 7}).drift_events() == 7


def test_two_errors_do_not_cancel_each_other_out():
    assert QueueNumbers(events=1, dead_recovered_events=1).drift_events() == 2


@pytest.mark.parametrize(
    ("bytes_now", "growth", "expected"),
    [
        (0, 10.0, 100.0),
        (900, 10.0, 10.0),
        (900, 0.0, None),
        (900, -5.0, None),
        (1000, 0.0, 0.0),
        (1200, -5.0, 0.0),
    ],
)
def test_time_until_full(bytes_now, growth, expected):
    assert seconds_until_full(bytes_now=bytes_now, capacity_bytes=1000, growth_bytes_per_second=growth) == expected


def test_a_capacity_not_known_yet_is_not_full():
    assert seconds_until_full(bytes_now=0, capacity_bytes=0, growth_bytes_per_second=1.0) is None


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def moment(**queue) -> Snapshot:
    return Snapshot(now=1, started_at=0, version="v", upstream="u", queue=QueueNumbers(**queue))


def grown(seconds: int) -> Snapshot:
    return moment(
        events=seconds * 6,
        bytes=seconds * 100,
        capacity_bytes=100_000,
        enqueued_events=seconds * 10,
        acked_events=seconds * 4,
    )


def test_the_trend_is_measured_over_its_windows():
    clock = Clock()
    history = History(clock)
    for at in range(0, 300, SAMPLE_SECONDS):
        clock.now = 1_000 + at
        history.sample(grown(at))
    clock.now = 1_300
    trend = history.trend(grown(300))
    assert trend.accepted_per_second == pytest.approx(10)
    assert trend.delivered_per_second == pytest.approx(4)
    assert trend.growth_bytes_per_second == pytest.approx(100)
    assert trend.seconds_until_full == pytest.approx((100_000 - 30_000) / 100)


def test_rates_forget_what_happened_before_their_window():
    clock = Clock()
    history = History(clock)
    history.sample(moment(enqueued_events=0))
    for _ in range(10):
        clock.now += SAMPLE_SECONDS
        history.sample(moment(enqueued_events=1_000_000))
    assert history.trend(moment(enqueued_events=1_000_000)).accepted_per_second == 0


def test_without_a_sample_there_is_no_trend():
    trend = History(Clock()).trend(grown(5))
    assert (trend.accepted_per_second, trend.seconds_until_full) == (0.0, None)


def test_the_curve_ends_now_and_reaches_back_fifteen_minutes_at_most():
    clock = Clock()
    history = History(clock)
    for at in range(0, 3_600, SAMPLE_SECONDS):
        clock.now = at
        history.sample(moment(events=at))
    clock.now = 3_600
    curve = history.depths(moment(events=42))
    assert curve[-1] == (0.0, 42)
    assert curve[0] == (HISTORY_SECONDS, 3_600 - HISTORY_SECONDS)
    assert len(curve) <= HISTORY_SECONDS // SAMPLE_SECONDS + 2


@given(values=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 5))))
def test_a_histogram_agrees_with_counting_by_hand(values):
    histogram = Histogram((0.5, 1, 5))
    for value, weight in values:
        histogram.observe(value, weight)
    assert histogram.cumulative() == [
        (bound, sum(weight for value, weight in values if value <= bound)) for bound in (0.5, 1, 5, float("inf"))
    ]
    assert histogram.sum == pytest.approx(sum(value * weight for value, weight in values))


@pytest.mark.parametrize(
    "bounds", [ANSWER_BUCKETS, ATTEMPT_BUCKETS, COMMIT_BUCKETS, DELAY_BUCKETS, EVENTS_BUCKETS, LAG_BUCKETS]
)
def test_bounds_grow(bounds):
    assert list(bounds) == sorted(set(bounds))


def test_buckets_hold_the_limits_that_alerts_and_promises_speak_of():
    assert 5 in ANSWER_BUCKETS  # the bound on answers
    assert 0.25 in COMMIT_BUCKETS  # slow commits
    assert 900 in DELAY_BUCKETS  # too old


def test_a_fingerprint_is_what_sha256sum_prints_and_not_the_key():
    key = "secret-abcdefghijklmnopqrstuvwxyz"
    assert fingerprint(key) == hashlib.sha256(key.encode()).hexdigest()[:8]
    assert fingerprint("") == "default"


def test_a_moment_without_lanes_has_no_oldest_event():
    empty = Snapshot(now=1, started_at=0, version="v", upstream="u")
    assert (empty.oldest_age_seconds(), empty.oldest_parked_age_seconds()) == (0.0, 0.0)
