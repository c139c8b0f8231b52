"""Numbers as people read them: counts, sizes, spans of time and rates; pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
_COARSE_SECONDS: Final = 3 * _MINUTE
_MILLISECONDS_BELOW_SECONDS: Final = 0.1
_TENTHS_BELOW_SECONDS: Final = 10
_KIBI: Final = 1024
_FOUR_DIGITS: Final = 999.95
"""1022 MiB reads worse than 1 GiB."""
_SIZES: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def count(number: int) -> str:
    """Give 12480 as `12,480`."""
    return f"{number:,}"


def events(number: int) -> str:
    """Give `1 event`, `12,480 events`."""
    return "1 event" if number == 1 else f"{number:,} events"


def size(number: float) -> str:
    """Give bytes as `512 B`, `3.1 MiB`, `1 GiB`."""
    if number < _FOUR_DIGITS:
        return f"{number:.0f} B"
    for unit in _SIZES:
        number /= _KIBI
        if number < _FOUR_DIGITS or unit == _SIZES[-1]:
            break
    return f"{number:,.1f}".removesuffix(".0") + f" {unit}"


def span(seconds: float) -> str:
    """Give seconds as `4 ms`, `0.4 s`, `8 s`, `4 min 12 s`, `5 h 40 min`, `3 d 4 h`: two units at most."""
    seconds = max(0.0, seconds)
    if 0 < round(seconds, 3) < _MILLISECONDS_BELOW_SECONDS:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _TENTHS_BELOW_SECONDS and round(seconds, 1) % 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, part, part_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{whole} s"


def countdown(seconds: float) -> str:
    """Give a wait in whole seconds, rounded up, so that it never says 0 before its time."""
    return span(math.ceil(seconds))


def about(seconds: float) -> str:
    """Give an estimate as a span without the digits nobody can vouch for: `37 s`, `30 min`, `5 h 40 min`."""
    whole = round(seconds)
    return span(whole - whole % _MINUTE if whole >= _COARSE_SECONDS else whole)


def rate(per_second: float) -> str:
    """Give `0/s`, `0.4/s`, `12/s`, `3,512/s`."""
    if 0 < per_second < _TENTHS_BELOW_SECONDS:
        return f"{max(0.1, per_second):.1f}/s".replace(".0/", "/")
    return f"{per_second:,.0f}/s"


def share(part: float) -> str:
    """Give 0.123 as `12 %`; a little is never shown as nothing, nor almost all as all."""
    percent = part * 100
    if 0 < percent < 1:
        return f"{max(0.1, percent):.1f} %" if percent < 0.95 else "1 %"  # noqa: PLR2004  rounds up to one
    if 99 < percent < 100:  # noqa: PLR2004  not full yet
        return "99 %"
    return f"{percent:.0f} %"


def clock(at: float) -> str:
    """Give Unix seconds as the time of day, `14:03:22`, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
