"""What an answer means, and how long to wait after it; pure.

Answer ──judge()──► Outcome: verdict (what to do) · label (how it is counted) · words (for people)

2xx that says so             DELIVERED      the batch is done
2xx that does not            DOUBTFUL       close the host's gate, probe with one chunk
3xx 404 405 407 410          MISCONFIGURED  close the host's gate, probe with one chunk
401 402 403                  PARK           the lane's key does not work; probe it now and then
425 429, other 4xx           RETRY_LANE     the lane backs off
400 415 422                  BISECT         some event in it is refused; find out which
413                          SPLIT          too big; cut it by bytes, send smaller ones from now on
408 5xx, time-outs, network  RETRY_HOST     the host's gate takes note
"""

from __future__ import annotations

import enum
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.observe import Outcome as Label

Success = Literal["statsig", "status"]
"""What a delivery takes: 2xx with JSON that does not say `success: false`, or any 2xx at all."""

RETRY_AFTER_SECONDS_MAX: Final = 3600.0
"""A wait that upstream asks for is believed up to an hour; beyond it a typing error is likelier than a plan."""
DETAIL_CHARACTERS_MAX: Final = 400
"""Of upstream's words; enough for an error message, little enough for a list of dead letters."""

# What can come of an attempt ------------------------------------------------------------------------------------------


class Response(msgspec.Struct, frozen=True, tag=True):
    """A status line and headers that parsed; nothing else gives a status."""

    status: int
    body: bytes = b""
    """Its first bytes, as sent: never inflated."""
    complete: bool = True
    """The whole body is in `body`."""
    retry_after: str = ""
    date: str = ""
    """Upstream's clock, as its Date header has it."""


class ConnectFailed(msgspec.Struct, frozen=True, tag=True):
    """No connection, so nothing was sent: DNS, refused, unreachable, a proxy that says no, TLS."""

    detail: str


class TimedOut(msgspec.Struct, frozen=True, tag=True):
    """The attempt took too long; `sent` where the whole body had left."""

    sent: bool
    detail: str


class Reset(msgspec.Struct, frozen=True, tag=True):
    """The connection ended without an answer; `sent` where the whole body had left."""

    sent: bool
    detail: str


class Malformed(msgspec.Struct, frozen=True, tag=True):
    """What came back is not HTTP; `sent` where the whole body had left."""

    sent: bool
    detail: str


Answer = Response | ConnectFailed | TimedOut | Reset | Malformed

# What to do about it --------------------------------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What becomes of the batch, its lane and the host's gate."""

    DELIVERED = enum.auto()
    RETRY_HOST = enum.auto()
    RETRY_LANE = enum.auto()
    PARK = enum.auto()
    MISCONFIGURED = enum.auto()
    DOUBTFUL = enum.auto()
    BISECT = enum.auto()
    SPLIT = enum.auto()


class Outcome(msgspec.Struct, frozen=True):
    """An answer, judged."""

    verdict: Verdict
    label: Label
    """How the attempt is counted; `ambiguous` where upstream may have taken the batch all the same."""
    summary: str
    """A few words without anything upstream wrote; fit for logs and the status page."""
    status: int = 0
    """0 where there was none."""
    retry_after_seconds: float = 0.0
    detail: str = ""
    """An excerpt of upstream's words, for dead letters only: it may quote an event."""


_STATUS: Final[dict[int, tuple[Verdict, Label]]] = {
    **dict.fromkeys((400, 415, 422), (Verdict.BISECT, "rejected")),
    413: (Verdict.SPLIT, "rejected"),
    **dict.fromkeys((401, 402, 403), (Verdict.PARK, "auth")),
    **dict.fromkeys((404, 405, 407, 410), (Verdict.MISCONFIGURED, "misconfigured")),
    408: (Verdict.RETRY_HOST, "retryable"),
}
_STATUS_CLASS: Final[dict[int, tuple[Verdict, Label]]] = {
    1: (Verdict.MISCONFIGURED, "misconfigured"),  # 101 and its like answer no POST of ours
    3: (Verdict.MISCONFIGURED, "misconfigured"),
    # 425, 429, and whatever else upstream invents: nothing is dropped for a status nobody has thought of, and no other
    # lane waits for it.
    4: (Verdict.RETRY_LANE, "retryable"),
}
_OTHERWISE: Final[tuple[Verdict, Label]] = (Verdict.RETRY_HOST, "retryable")


def judge(answer: Answer, *, success: Success, now_ms: int) -> Outcome:
    """Say what an answer means; `now_ms` (wall clock) serves a Retry-After date where upstream sent no Date."""
    match answer:
        case Response(status=status) if status // 100 == 2:  # noqa: PLR2004  the class of success, RFC 9110
            return _judge_success(answer, success)
        case Response(status=status):
            verdict, label = _STATUS.get(status) or _STATUS_CLASS.get(status // 100, _OTHERWISE)
            wait = _retry_after(answer, now_ms)
            return Outcome(verdict, label, f"HTTP {status}", status, wait, _excerpt(answer.body))
        case _:
            return _judge_silence(answer)


def backoff(attempt: int, *, seconds_min: float, seconds_max: float, random: Callable[[], float]) -> float:
    """Seconds to wait after the `attempt`-th failure in a row (from 1): exponential, with full jitter.

    Evenly spread over `seconds_min` and twice that, four times, … at most `seconds_max`, so that relays that failed
    together do not come back together. `random` gives [0, 1).
    """
    exponent = min(attempt, 64)  # beyond any bound that a wait may have, and below what a float can hold
    ceiling = min(seconds_max, seconds_min * 2.0**exponent)
    return seconds_min + random() * max(0.0, ceiling - seconds_min)


def _judge_success(answer: Response, success: Success) -> Outcome:
    summary = f"HTTP {answer.status}"
    if success == "status" or (answer.complete and _says_yes(answer.body)):
        return Outcome(Verdict.DELIVERED, "success", summary, answer.status)
    if not answer.complete and _may_say_yes(answer.body):
        # The yes was cut off on its way here, so upstream very likely has the batch: unknown, not refused.
        return Outcome(Verdict.RETRY_HOST, "ambiguous", f"{summary} with a body cut short", answer.status)
    return Outcome(
        Verdict.DOUBTFUL, "bad_answer", f"{summary} that does not say success", answer.status, 0, _excerpt(answer.body)
    )


def _judge_silence(answer: ConnectFailed | TimedOut | Reset | Malformed) -> Outcome:
    label: Label
    match answer:
        case TimedOut(sent=True) | Reset(sent=True) | Malformed(sent=True):
            label = "ambiguous"
        case TimedOut():
            label = "timeout"
        case ConnectFailed() | Reset():
            label = "connect"
        case Malformed():
            label = "retryable"
    return Outcome(Verdict.RETRY_HOST, label, answer.detail)


def _says_yes(body: bytes) -> bool:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return not (isinstance(said, dict) and said.get("success") is False)


def _may_say_yes(body: bytes) -> bool:
    return not body.strip() or body.lstrip()[:1] == b"{"


def _excerpt(body: bytes) -> str:
    return body.decode("utf-8", "replace")[:DETAIL_CHARACTERS_MAX]


def _retry_after(answer: Response, now_ms: int) -> float:
    """Seconds that upstream asks us to wait (RFC 9110, 10.2.3: seconds or a date); 0 where it does not, or not legibly.

    A date is read against upstream's own Date, for the clocks need not agree.
    """
    text = answer.retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_SECONDS_MAX)
    until = _unix_seconds(text)
    if until is None:
        return 0.0
    now = _unix_seconds(answer.date)
    wait = until - (now_ms / 1000 if now is None else now)
    return min(max(wait, 0.0), RETRY_AFTER_SECONDS_MAX)


def _unix_seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
