"""The first of a kind at once, then one line a minute; the lines add up."""

from hypothesis import given
from hypothesis import strategies as st

from relay.logs.repeats import KINDS_MAX, OnceAMinute, summarise_all


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Lines(list):
    def emit(self, event, /, **fields):
        self.append((event, fields))


def make():
    clock, lines = Clock(), Lines()
    return OnceAMinute(clock=clock), clock, lines


def test_the_first_of_a_kind_is_logged_at_once_and_as_it_is():
    repeats, _, lines = make()
    repeats.say(lines.emit, "upstream_failed", status=503)
    assert lines == [("upstream_failed", {"status": 503})]


def test_repeats_within_a_minute_are_held_back():
    repeats, clock, lines = make()
    for _ in range(1000):
        repeats.say(lines.emit, "upstream_failed", status=503)
        clock.now += 0.0599
    assert len(lines) == 1


def test_a_repeat_after_the_minute_counts_those_held_back_and_itself():
    repeats, clock, lines = make()
    for seconds in (0, 1, 1, 58):
        clock.now += seconds
        repeats.say(lines.emit, "failed", at=clock.now)
    assert lines[1:] == [("failed", {"at": 1060.0, "times": 3})]


def test_a_summary_tells_what_was_held_back_without_waiting_for_the_next_time():
    repeats, clock, lines = make()
    for status in (500, 502, 503):
        repeats.say(lines.emit, "failed", status=status)
    clock.now += 59.9
    repeats.summarise()
    assert len(lines) == 1
    clock.now += 0.1
    repeats.summarise()
    assert lines[1:] == [("failed", {"status": 503, "times": 2})]


def test_after_a_summary_the_minute_begins_anew():
    repeats, clock, lines = make()
    repeats.say(lines.emit, "failed")
    repeats.say(lines.emit, "failed")
    clock.now += 60
    repeats.summarise()
    repeats.say(lines.emit, "failed")
    assert len(lines) == 2


def test_after_a_quiet_minute_the_next_one_is_a_first_again():
    repeats, clock, lines = make()
    repeats.say(lines.emit, "failed")
    clock.now += 60
    repeats.summarise()
    repeats.say(lines.emit, "failed")
    assert lines == [("failed", {}), ("failed", {})]


def test_kinds_and_events_do_not_hold_each_other_back():
    repeats, _, lines = make()
    repeats.say(lines.emit, "failed", per=1)
    repeats.say(lines.emit, "failed", per=2)
    repeats.say(lines.emit, "closed", per=1)
    assert len(lines) == 3


def test_no_more_kinds_are_remembered_than_the_bound_and_none_is_lost():
    repeats, _, lines = make()
    repeats.say(lines.emit, "failed", per=0)
    repeats.say(lines.emit, "failed", per=0)
    for kind in range(1, KINDS_MAX + 1):
        repeats.say(lines.emit, "failed", per=kind)
    assert lines.count(("failed", {"times": 1})) == 1
    assert len(lines) == KINDS_MAX + 2


def test_every_instance_is_summed_up_early_at_the_end():
    repeats, _, lines = make()
    repeats.say(lines.emit, "failed")
    repeats.say(lines.emit, "failed")
    summarise_all(early=True)
    assert lines[1:] == [("failed", {"times": 1})]


def test_a_log_call_from_within_a_log_call_is_no_deadlock():
    repeats, _, lines = make()

    def emit(event, /, **fields):
        lines.emit(event, **fields)
        repeats.say(lines.emit, "inner")

    repeats.say(emit, "outer")
    assert [event for event, _ in lines] == ["outer", "inner"]


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 3), st.booleans())))
def test_the_lines_of_a_kind_add_up_to_how_often_it_happened(steps):
    repeats, clock, lines = make()
    happened = [0] * 4
    for seconds, kind, summary in steps:
        clock.now += seconds
        repeats.say(lines.emit, f"kind_{kind}")
        happened[kind] += 1
        if summary:
            repeats.summarise()
    repeats.summarise(early=True)
    told = [sum(fields.get("times", 1) for event, fields in lines if event == f"kind_{kind}") for kind in range(4)]
    assert told == happened
