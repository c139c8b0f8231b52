from __future__ import annotations

from fakes.time import seeded
from hypothesis import given
from hypothesis import strategies as st

from relay.forwarder.gate import Gate


def gate(in_flight_max: int = 8) -> Gate:
    return Gate(in_flight_max=in_flight_max, retry_seconds_min=1, retry_seconds_max=300, random=seeded().random)


def attempt(gate: Gate, now: float) -> None:
    assert gate.next_at(now) == now
    gate.started()
    gate.ended()


def fail(gate: Gate, now: float, culprit: int, wait: float = 0.0) -> None:
    attempt(gate, now)
    gate.failed(now, culprit=culprit, reason="HTTP 503", retry_after_seconds=wait)


def closed(now: float = 0.0) -> Gate:
    shut = gate()
    for culprit in range(4):
        fail(shut, now, culprit)
    assert shut.limit == 0
    return shut


def test_it_starts_open_and_lets_no_more_through_than_its_limit():
    fresh = gate(3)
    for _ in range(3):
        assert fresh.next_at(5.0) == 5.0
        fresh.started()
    assert fresh.next_at(5.0) is None
    fresh.ended()
    assert fresh.next_at(5.0) == 5.0


def test_failures_halve_it_and_then_close_it():
    falling = gate()
    limits = []
    for culprit in range(4):
        fail(falling, 0.0, culprit)
        limits.append(falling.limit)
    assert limits == [4, 2, 1, 0]
    assert 1 <= falling.opens_at <= 2


def test_a_failure_among_successes_never_closes_it():
    mixed = gate()
    for now in range(50):
        attempt(mixed, now)
        mixed.succeeded()
        fail(mixed, now, culprit=now)
        assert mixed.limit >= 1


def test_a_failure_among_other_signs_of_life_never_closes_it_either():
    mixed = gate()
    for now in range(10):
        attempt(mixed, now)
        mixed.alive()
        fail(mixed, now, culprit=now)
    assert mixed.limit == 1


def test_a_closed_gate_lets_one_probe_through_when_its_time_comes():
    shut = closed()
    assert shut.next_at(0.5) == shut.opens_at
    shut.started()
    assert shut.next_at(shut.opens_at) is None


def test_probes_that_fail_wait_longer_and_longer_up_to_the_bound():
    shut, waits = closed(), []
    for culprit in range(4, 40):
        now = shut.opens_at
        fail(shut, now, culprit)
        waits.append(shut.opens_at - now)
    assert max(waits[:2]) <= 8
    assert 100 < max(waits) <= 300


def test_a_probe_that_succeeds_opens_it_for_one_and_successes_add_up_slowly():
    healed = closed()
    attempt(healed, healed.opens_at)
    healed.succeeded()
    limits = []
    for now in range(100, 140):
        limits.append(healed.limit)
        attempt(healed, now)
        healed.succeeded()
    assert limits[:7] == [1, 2, 2, 3, 3, 3, 4]
    assert healed.limit == 8
    assert healed.backoff_seconds == 0


def test_any_sign_of_life_reopens_it():
    healed = closed()
    attempt(healed, healed.opens_at)
    healed.alive()
    assert healed.limit == 1


def test_an_explicit_wait_closes_it_at_once_and_the_longer_wait_counts():
    told = gate()
    fail(told, 10.0, culprit=1, wait=90)
    assert (told.limit, told.opens_at) == (0, 100.0)
    assert told.next_at(11.0) == 100.0


def test_while_one_batch_alone_speaks_against_the_host_another_may_try_at_once():
    blamed = gate()
    for _ in range(4):
        fail(blamed, 0.0, culprit=7)
    assert blamed.limit == 0
    assert blamed.next_at(0.0) == 0.0
    fail(blamed, 0.0, culprit=8)
    assert blamed.next_at(0.0) == blamed.opens_at > 0.0


def test_an_answer_that_makes_no_sense_shuts_it_for_a_fixed_time():
    odd = gate()
    attempt(odd, 0.0)
    odd.shut(0.0, seconds=60, reason="HTTP 404")
    assert (odd.limit, odd.cautious, odd.next_at(1.0)) == (0, True, 60.0)
    attempt(odd, 60.0)
    odd.shut(60.0, seconds=60, reason="HTTP 404")
    assert odd.next_at(61.0) == 120.0
    attempt(odd, 120.0)
    odd.succeeded()
    assert (odd.limit, odd.cautious, odd.reason) == (1, False, "")


def test_a_probe_that_taught_nothing_can_be_repeated():
    shut = closed()
    attempt(shut, shut.opens_at)
    shut.withdrawn()
    assert shut.next_at(shut.opens_at) == shut.opens_at


@given(st.integers(1, 16), st.lists(st.tuples(st.sampled_from("sfawxg"), st.integers(0, 5), st.floats(0, 50))))
def test_whatever_happens_it_keeps_its_bounds_and_can_open_again(in_flight_max, history):
    tried, now = gate(in_flight_max), 0.0
    for event, culprit, passed in history:
        now += passed
        if event == "g" and tried.next_at(now) == now:
            tried.started()
        elif tried.in_flight:
            tried.ended()
            match event:
                case "s":
                    tried.succeeded()
                case "f":
                    tried.failed(now, culprit=culprit, reason="")
                case "a":
                    tried.alive()
                case "w":
                    tried.withdrawn()
                case _:
                    tried.shut(now, seconds=60, reason="")
        assert 0 <= tried.limit <= in_flight_max
        assert tried.in_flight >= 0
    while tried.in_flight:
        tried.ended()
        tried.withdrawn()
    at = tried.next_at(now)
    assert at is not None
    assert at <= now + 300
    tried.started()
    tried.ended()
    tried.succeeded()
    assert tried.limit >= 1
