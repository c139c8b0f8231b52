from __future__ import annotations

import pytest
from fakes.time import seeded
from hypothesis import given
from hypothesis import strategies as st

from relay.forwarder.delivery import (
    RETRY_AFTER_SECONDS_MAX,
    ConnectFailed,
    Malformed,
    Reset,
    Response,
    TimedOut,
    Verdict,
    backoff,
    judge,
)
from relay.observe import Observer

NOW_MS = 1_795_000_000_000  # Wed, 18 Nov 2026 11:06:40 GMT
YES = b'{"success": true}'

TABLE = [
    # the answer, the verdict, how it is counted
    (Response(200, YES), Verdict.DELIVERED, "success"),
    (Response(202, YES), Verdict.DELIVERED, "success"),
    (Response(202, b'{"success":true,"rejected":[]}'), Verdict.DELIVERED, "success"),
    (Response(200, b"{}"), Verdict.DELIVERED, "success"),
    (Response(200, b"[]"), Verdict.DELIVERED, "success"),
    (Response(202, b'{"success": false}'), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b"<html>Sign in to the hotel's network</html>"), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b""), Verdict.DOUBTFUL, "bad_answer"),
    (Response(204, b""), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b"default backend - 404"), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b"\x1f\x8b\x08\x00\x00"), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b"[" * 4096), Verdict.DOUBTFUL, "bad_answer"),
    (Response(200, b"\xff\xfe{"), Verdict.DOUBTFUL, "bad_answer"),
    (Response(202, b'{"succ', complete=False), Verdict.RETRY_HOST, "ambiguous"),
    (Response(202, YES, complete=False), Verdict.RETRY_HOST, "ambiguous"),
    (Response(202, b"", complete=False), Verdict.RETRY_HOST, "ambiguous"),
    (Response(200, b"<html>", complete=False), Verdict.DOUBTFUL, "bad_answer"),
    (Response(101), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(301), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(302), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(304), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(307), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(308), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(400), Verdict.BISECT, "rejected"),
    (Response(401), Verdict.PARK, "auth"),
    (Response(402), Verdict.PARK, "auth"),
    (Response(403), Verdict.PARK, "auth"),
    (Response(404), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(405), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(407), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(408), Verdict.RETRY_HOST, "retryable"),
    (Response(409), Verdict.RETRY_LANE, "retryable"),
    (Response(410), Verdict.MISCONFIGURED, "misconfigured"),
    (Response(413), Verdict.SPLIT, "rejected"),
    (Response(415), Verdict.BISECT, "rejected"),
    (Response(418), Verdict.RETRY_LANE, "retryable"),
    (Response(422), Verdict.BISECT, "rejected"),
    (Response(425), Verdict.RETRY_LANE, "retryable"),
    (Response(429), Verdict.RETRY_LANE, "retryable"),
    (Response(431), Verdict.RETRY_LANE, "retryable"),
    (Response(500), Verdict.RETRY_HOST, "retryable"),
    (Response(501), Verdict.RETRY_HOST, "retryable"),
    (Response(502), Verdict.RETRY_HOST, "retryable"),
    (Response(503), Verdict.RETRY_HOST, "retryable"),
    (Response(504), Verdict.RETRY_HOST, "retryable"),
    (Response(599), Verdict.RETRY_HOST, "retryable"),
    (Response(999), Verdict.RETRY_HOST, "retryable"),
    (ConnectFailed("refused"), Verdict.RETRY_HOST, "connect"),
    (TimedOut(sent=False, detail=""), Verdict.RETRY_HOST, "timeout"),
    (TimedOut(sent=True, detail=""), Verdict.RETRY_HOST, "ambiguous"),
    (Reset(sent=False, detail=""), Verdict.RETRY_HOST, "connect"),
    (Reset(sent=True, detail=""), Verdict.RETRY_HOST, "ambiguous"),
    (Malformed(sent=False, detail=""), Verdict.RETRY_HOST, "retryable"),
    (Malformed(sent=True, detail=""), Verdict.RETRY_HOST, "ambiguous"),
]


@pytest.mark.parametrize(("answer", "verdict", "label"), TABLE, ids=lambda value: repr(value)[:60])
def test_the_verdict_table(answer, verdict, label):
    outcome = judge(answer, success="statsig", now_ms=NOW_MS)
    assert (outcome.verdict, outcome.label) == (verdict, label)
    assert outcome.status == getattr(answer, "status", 0)


@given(st.integers(200, 299), st.binary(max_size=50), st.booleans())
def test_a_receiver_that_is_not_statsig_may_say_yes_with_any_2xx(status, body, complete):
    outcome = judge(Response(status, body, complete), success="status", now_ms=NOW_MS)
    assert outcome.verdict is Verdict.DELIVERED


@given(st.integers(100, 999), st.binary(max_size=200), st.text(max_size=40), st.text(max_size=40))
def test_no_answer_breaks_the_judge_and_only_a_2xx_delivers(status, body, retry_after, date):
    answer = Response(status, body, retry_after=retry_after, date=date)
    for success in ("statsig", "status"):
        outcome = judge(answer, success=success, now_ms=NOW_MS)
        assert outcome.verdict is not Verdict.DELIVERED or status // 100 == 2
        assert 0 <= outcome.retry_after_seconds <= RETRY_AFTER_SECONDS_MAX


def test_every_label_has_a_counter():
    observer = Observer()
    for answer, _, label in TABLE:
        observer.attempt_ended(judge(answer, success="statsig", now_ms=NOW_MS).label, 1, 1, 0.1)
        assert observer.attempts[label]


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("", "", 0),
        ("7", "", 7),
        (" 7 ", "", 7),
        ("0", "", 0),
        ("-5", "", 0),
        ("1.5", "", 0),
        ("soon", "", 0),
        ("٣", "", 0),
        ("86400", "", RETRY_AFTER_SECONDS_MAX),
        ("9" * 5000, "", RETRY_AFTER_SECONDS_MAX),
        ("Wed, 18 Nov 2026 11:07:10 GMT", "", 30),
        ("Wed, 18 Nov 2026 11:00:00 GMT", "", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "", RETRY_AFTER_SECONDS_MAX),
        ("Wed, 32 Nov 2026 11:07:10 GMT", "", 0),
        # upstream's clock is an hour ahead of ours: its own Date says what it means
        ("Wed, 18 Nov 2026 12:07:10 GMT", "Wed, 18 Nov 2026 12:06:40 GMT", 30),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(retry_after, date, seconds):
    outcome = judge(Response(503, retry_after=retry_after, date=date), success="statsig", now_ms=NOW_MS)
    assert outcome.retry_after_seconds == seconds


def test_upstreams_words_stay_out_of_what_is_logged():
    outcome = judge(Response(400, b"bad event: ada@example.com" * 100), success="statsig", now_ms=NOW_MS)
    assert outcome.summary == "HTTP 400"
    assert outcome.detail.startswith("bad event")
    assert len(outcome.detail) <= 400


@given(st.integers(1, 10_000), st.floats(0.1, 10), st.floats(10, 1000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_bounds(attempt, low, high, draw):
    assert low <= backoff(attempt, seconds_min=low, seconds_max=high, random=lambda: draw) <= high


def test_backoff_doubles_its_reach_and_uses_all_of_it():
    random = seeded().random
    for attempt, reach in ((1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (50, 300)):
        waits = sorted(backoff(attempt, seconds_min=1, seconds_max=300, random=random) for _ in range(2000))
        assert waits[0] < 1 + reach * 0.02
        assert reach * 0.97 < waits[-1] <= reach
        assert abs(waits[1000] - (1 + reach) / 2) < reach * 0.06
