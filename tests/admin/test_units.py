from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.admin.units import about, clock, count, countdown, events, rate, share, size, span


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (count(12_480), "12,480"),
        (events(0), "0 events"),
        (events(1), "1 event"),
        (events(1_000), "1,000 events"),
        (size(0), "0 B"),
        (size(1_023), "1 KiB"),
        (size(999), "999 B"),
        (size(1_536), "1.5 KiB"),
        (size(1 << 30), "1 GiB"),
        (size((1 << 30) - 1), "1 GiB"),
        (size(1 << 70), "1,048,576 PiB"),
        (span(0), "0 s"),
        (span(0.0001), "0 s"),
        (span(0.0023), "2 ms"),
        (span(0.0999), "0.1 s"),
        (span(0.42), "0.4 s"),
        (span(8), "8 s"),
        (span(9.97), "10 s"),
        (span(59.6), "1 min"),
        (span(252), "4 min 12 s"),
        (span(20_400), "5 h 40 min"),
        (span(3_600), "1 h"),
        (span(273_600), "3 d 4 h"),
        (span(-3), "0 s"),
        (countdown(8.2), "9 s"),
        (countdown(0.01), "1 s"),
        (about(37.4), "37 s"),
        (about(1_809), "30 min"),
        (about(20_459), "5 h 40 min"),
        (rate(0), "0/s"),
        (rate(0.01), "0.1/s"),
        (rate(4), "4/s"),
        (rate(3_511.7), "3,512/s"),
        (share(0), "0 %"),
        (share(0.0001), "0.1 %"),
        (share(0.123), "12 %"),
        (share(0.999), "99 %"),
        (share(1), "100 %"),
        (clock(1_795_462_698), "19:38:18"),
    ],
)
def test_numbers_read_as_people_write_them(told, expected):
    assert told == expected


@given(st.floats(0, 1e10))
def test_a_span_has_two_units_at_most_and_no_unit_that_overflows(seconds):
    words = span(seconds).split()
    assert len(words) in (2, 4)
    limits = {"ms": 100, "s": 60, "min": 60, "h": 24, "d": 10**9}
    assert all(float(number) < limits[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


@given(st.integers(0, 10**18))
def test_a_size_has_three_digits_and_a_half(number):
    value, unit = size(number).split()
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    assert float(value) < 1_000
