"""What a request says about itself, in headers or in the query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from relay.errors import Refusal, Unauthorized
from relay.wire import read_head
from relay.wire.head import HEADER_CHARACTERS_MAX, HEADERS_BYTES_MAX, KEY_CHARACTERS_MAX, _block, _blocks

NOW_MS = 1_795_462_698_000
HOUR_MS = 3_600_000


def head(query: str = "", **headers: str):
    return read_head(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), query)


@pytest.mark.parametrize(
    ("headers", "query", "key"),
    [
        ({"statsig-api-key": "secret-1"}, "", "secret-1"),
        ({"STATSIG-API-KEY": "secret-1"}, "", "secret-1"),
        ({"StatSig-Api-Key": " secret-1 "}, "k=client-2", "secret-1"),
        ({"statsig-api-key": ""}, "k=client-2", "client-2"),
        ({}, "st=x&k=client-2&k=client-3", "client-2"),
        ({}, "k=", ""),
        ({}, "K=client-2", ""),
        ({}, "", ""),
    ],
)
def test_the_header_wins_over_the_query_for_the_key(headers: dict[str, str], query: str, key: str):
    assert read_head(CIMultiDict(headers), query).key == key


@pytest.mark.parametrize("query", ["k=a%0d%0aX-Other:%20b", "k=%00", "k=a%7f", "k=%c3%a9", "k=%ff", f"k={'x' * 513}"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(query: str):
    with pytest.raises(Unauthorized) as refusal:
        head(query)
    assert query[2:] not in str(refusal.value)


def test_a_key_of_the_longest_length_passes():
    assert head(f"k={'x' * KEY_CHARACTERS_MAX}").key == "x" * KEY_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("header", "query", "time"),
    [
        ("1795462698738", "", 1_795_462_698_738),
        ("1795462698738.9", "", 1_795_462_698_738),
        ("1.795462698738e12", "", 1_795_462_698_738),
        ("", "t=1795462698738", 1_795_462_698_738),
        ("soon", "t=5", 5),
        ("7", "t=5", 7),
        ("nan", "", None),
        ("-inf", "", None),
        ("1e999", "", None),
        ("2026-11-23T00:00:00Z", "", None),
        ("", "", None),
    ],
)
def test_the_clients_time_is_read_as_integer_or_float_or_not_at_all(header: str, query: str, time: int | None):
    assert head(query, statsig_client_time=header).client_time_ms == time


@pytest.mark.parametrize(
    ("behind_ms", "retry", "skew_ms"),
    [
        (0, "", 0),
        (2_000, "", 0),
        (-2_000, "", 0),
        (2_001, "", 2_001),
        (-2_001, "", -2_001),
        (5 * 60_000, "", 5 * 60_000),
        (5 * 60_000, "1", 0),
        (5 * 60_000 + 1, "1", 5 * 60_000 + 1),
        (-60_000, "1", -60_000),
        (24 * HOUR_MS, "", 24 * HOUR_MS),
        (-24 * HOUR_MS, "", -24 * HOUR_MS),
        (24 * HOUR_MS + 1, "", None),
        (-24 * HOUR_MS - 1, "1", None),
        (NOW_MS - NOW_MS // 1000, "", None),  # seconds where milliseconds belong
    ],
)
def test_skew_is_what_the_two_clocks_differ_by_within_reason(behind_ms: int, retry: str, skew_ms: int | None):
    sent = head(statsig_client_time=str(NOW_MS - behind_ms), statsig_retry_count=retry)
    assert sent.skew_ms(NOW_MS) == skew_ms


def test_a_request_without_a_time_has_no_skew():
    assert head().skew_ms(NOW_MS) is None


@pytest.mark.parametrize(
    ("headers", "is_retry"),
    [
        ({"statsig-retry-count": "0"}, False),
        ({"statsig-retry": "0"}, False),
        ({"STATSIG-RETRY": "2"}, True),
        ({"Statsig-Retry-Count": "1"}, True),
        ({"statsig-retry-count": ""}, False),
        ({}, False),
    ],
)
def test_a_retry_says_so_in_either_header(headers: dict[str, str], *, is_retry: bool):
    assert read_head(CIMultiDict(headers), "").is_retry is is_retry


def test_only_the_sdks_own_headers_travel_in_lower_case_and_sorted():
    headers = CIMultiDict(
        {
            "X-Request-Service": "cart",
            "User-Agent": "node",
            "STATSIG-SDK-VERSION": "6.5.2",
            "Statsig-Sdk-Type": "statsig-node",
            "statsig-stable-id": "stable",
            "statsig-server-session-id": "session",
            "statsig-sdk-language-version": "20",
            "statsig-api-key": "secret-1",
            "statsig-client-time": "5",
            "statsig-event-count": "42",
            "statsig-retry-count": "1",
            "statsig-retry": "1",
            "statsig-encoded": "0",
            "Cookie": "a=b",
            "Authorization": "Bearer x",
            "Host": "localhost",
            "Content-Type": "text/plain",
        }
    )
    assert read_head(headers, "").headers == (
        b"statsig-sdk-language-version: 20\nstatsig-sdk-type: statsig-node\nstatsig-sdk-version: 6.5.2\n"
        b"statsig-server-session-id: session\nstatsig-stable-id: stable\nuser-agent: node\nx-request-service: cart\n"
    )


def test_the_browsers_query_stands_in_for_absent_headers_only():
    browser = head("k=client-1&st=javascript-client&sv=3.33.5&t=5&sid=abc&ec=41&gz=1", statsig_sdk_version="4")
    assert browser.headers == (
        b"statsig-sdk-type: javascript-client\nstatsig-sdk-version: 4\nstatsig-server-session-id: abc\n"
    )
    assert (browser.session_id, browser.client_time_ms, browser.gzip_claimed) == ("abc", 5, True)


@pytest.mark.parametrize("query", ["gz=0", "gz=", "GZ=1", ""])
def test_gzip_is_claimed_by_nothing_but_gz_1(query: str):
    assert not head(query).gzip_claimed


@pytest.mark.parametrize("name", ["user-agent", "statsig-stable-id", "cookie"])
def test_a_query_names_no_header_but_those_of_the_browser_sdk(name: str):
    assert head(f"{name}=x").headers == b""


@pytest.mark.parametrize("value", ["a%0aother: b", "a%0d", "a%00", "a%1b[0m", "a%c2%85", "x" * 1025])
def test_a_value_that_would_break_the_block_does_not_travel(value: str):
    assert head(f"st={value}&sv=1").headers == b"statsig-sdk-version: 1\n"


def test_a_header_that_was_no_utf8_does_not_travel():
    assert head(user_agent="caf\udce9").headers == b""


def test_the_block_never_grows_past_its_bound():
    headers = CIMultiDict(dict.fromkeys(("user-agent", "statsig-sdk-type"), "🎉" * HEADER_CHARACTERS_MAX))
    assert 8_000 < len(read_head(headers, "").headers) <= HEADERS_BYTES_MAX


def test_the_cache_of_blocks_is_bounded_and_skips_long_ones():
    _blocks.clear()
    for number in range(5_000):
        assert _block((str(number), "", "", "", "", "", "")) == b"statsig-sdk-language-version: %d\n" % number
        assert len(_blocks) <= 1_024
    held = len(_blocks)
    _block(("x" * 1_025, "", "", "", "", "", ""))
    assert len(_blocks) == held


@given(st.dictionaries(st.sampled_from(["statsig-api-key", "statsig-client-time", "user-agent"]), st.text()), st.text())
def test_nothing_but_a_refusal_comes_of_any_header_or_query(headers: dict[str, str], query: str):
    try:
        read = read_head(CIMultiDict(headers), query)
    except Refusal:
        return
    read.skew_ms(NOW_MS)
    assert all(line.count(b": ") >= 1 for line in read.headers.splitlines())


def test_a_key_behind_very_many_other_fields_is_still_found():
    assert head("&".join(f"a{n}=1" for n in range(1_000)) + "&k=client-1").key == "client-1"
