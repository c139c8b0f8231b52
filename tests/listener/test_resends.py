"""An exact repeat is recognised; nothing else is."""

from __future__ import annotations

from relay.listener.resends import WINDOW_SECONDS, Resends


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(**changed: object) -> tuple[Resends, Clock]:
    clock = Clock()
    return Resends(clock=clock, **changed), clock


def send(resends: Resends, *events: bytes, key: str = "k", session: str = "s") -> list[bool]:
    hashes = resends.hashes(key, session, events)
    new = resends.are_new(hashes)
    resends.stored([one for one, is_new in zip(hashes, new, strict=True) if is_new])
    return new


def test_events_of_an_earlier_request_are_recognised_one_by_one():
    resends, _ = make()
    assert send(resends, b"a", b"b") == [True, True]
    assert send(resends, b"b", b"c", b"a") == [False, True, False]


def test_equal_events_in_one_request_are_two_events():
    resends, _ = make()
    assert send(resends, b"a", b"a") == [True, True]


def test_another_key_or_session_is_another_event():
    resends, _ = make()
    send(resends, b"a")
    assert send(resends, b"a", session="t") == [True]
    assert send(resends, b"a", key="l") == [True]
    assert send(resends, b"a") == [False]


def test_what_was_not_stored_is_no_repeat():
    resends, _ = make()
    resends.are_new(resends.hashes("k", "s", [b"a"]))
    assert send(resends, b"a") == [True]


def test_a_repeat_is_recognised_for_the_whole_window_and_forgotten_some_time_after():
    for late in (0.0, 299.0, 600.0, WINDOW_SECONDS - 1):
        resends, clock = make()
        clock.now += 250  # into a generation's life
        send(resends, b"a")
        clock.now += late
        assert send(resends, b"a") == [False], late
    resends, clock = make()
    send(resends, b"a")
    clock.now += WINDOW_SECONDS * 2
    assert send(resends, b"a") == [True]


def test_a_flood_forgets_the_oldest_first_and_stays_within_its_bound():
    resends, _ = make(hashes_max=400)
    send(resends, b"old")
    for n in range(1000):
        send(resends, b"%d" % n)
    assert send(resends, b"old") == [True]
    assert send(resends, b"990", b"999") == [False, False]
    assert sum(map(len, resends._generations)) <= 400
