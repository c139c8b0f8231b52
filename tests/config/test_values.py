"""How values are spelled: every form that is taken, and every reason why one is not."""

import json
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.values import (
    Address,
    Unfit,
    check_url,
    format_seconds,
    format_size,
    parse_address,
    parse_flag,
    parse_origin,
    parse_path,
    parse_seconds,
    parse_share,
    parse_size,
    parse_whole,
    read_text,
    split_list,
    toml_text,
)


def reread(written: str):
    """Read back what was written as a TOML value."""
    return tomllib.loads(f"x = {written}")["x"]


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (0, 0),
        (1234, 1234),
        ("1234", 1234),
        ("7B", 7),
        ("500KB", 500_000),
        ("3mb", 3_000_000),
        ("2GB", 2_000_000_000),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("64MiB", 67_108_864),
        (" 64 mib ", 67_108_864),
        ("1GiB", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("0.5KiB", 512),
    ],
)
def test_a_size_is_read_in_each_of_its_forms(raw, size):
    assert parse_size(raw) == size


@pytest.mark.parametrize(
    "raw",
    ["", "lots", "64M", "64Mi", "-1", "1e6", "1,5GiB", "0x10", "٣MiB", ".5GiB", "5.GiB", 1.0, True, None, [1], {}],
)
def test_what_is_no_size_is_told_how_to_write_one(raw):
    with pytest.raises(Unfit, match='is not a size; write "64MiB", "500KB" or a number of bytes'):
        parse_size(raw)


def test_a_size_that_splits_a_byte_is_refused():
    with pytest.raises(Unfit, match="is not a whole number of bytes"):
        parse_size("0.1KiB")


@given(st.integers(min_value=0, max_value=1 << 60))
def test_every_size_reads_back_as_it_was_written(size):
    assert parse_size(reread(format_size(size))) == size


@pytest.mark.parametrize(
    ("size", "written"), [(0, "0"), (1000, "1000"), (1 << 20, '"1MiB"'), (3 << 29, '"1536MiB"'), (1 << 40, '"1TiB"')]
)
def test_a_size_is_written_in_the_largest_whole_unit(size, written):
    assert format_size(size) == written


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("45", 45.0),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("7d", 604_800.0),
        (" 7 D ", 604_800.0),
    ],
)
def test_a_duration_is_read_in_each_of_its_forms(raw, seconds):
    assert parse_seconds(raw) == seconds


@pytest.mark.parametrize("raw", ["", "soon", "1h30m", "-5s", "1w", "1e3", "inf", "nan", True, None, ["30s"], 10**400])
def test_what_is_no_duration_is_told_how_to_write_one(raw):
    with pytest.raises(Unfit, match='is not a duration; write "30s", "5m", "7d" or a number of seconds'):
        parse_seconds(raw)


@given(st.floats(min_value=0, max_value=1e9))
def test_every_duration_reads_back_as_it_was_written(seconds):
    assert parse_seconds(reread(format_seconds(seconds))) == seconds


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["", "s", "m", "h", "d"]))
def test_every_whole_duration_with_its_unit_reads_back_as_it_was_written(number, unit):
    seconds = parse_seconds(f"{number}{unit}")
    assert seconds == number * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_seconds(reread(format_seconds(seconds))) == seconds


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0"), (0.5, "0.5"), (300.0, "300"), (3600.0, '"1h"'), (5400.0, "5400"), (86400.0, '"1d"'), (90000, '"25h"')],
)
def test_a_duration_is_written_plainly(seconds, written):
    assert format_seconds(seconds) == written


@given(st.text(max_size=30))
def test_no_text_breaks_the_readers_of_sizes_durations_and_addresses(text):
    for read in (
        parse_size,
        parse_seconds,
        parse_address,
        parse_path,
        parse_origin,
        parse_whole,
        parse_share,
        check_url,
    ):
        try:
            read(text)
        except Unfit as unfit:
            assert str(unfit)  # noqa: PT017  only Unfit may come out, and with a reason


@pytest.mark.parametrize(("raw", "number"), [(0, 0), (-1, -1), (20_000, 20_000), ("20000", 20_000), ("20_000", 20_000)])
def test_a_whole_number_is_read(raw, number):
    assert parse_whole(raw) == number


@pytest.mark.parametrize("raw", ["", "1.0", 1.0, True, "1k", "_1", "1_", "1__0", None])
def test_what_is_no_whole_number_is_refused(raw):
    with pytest.raises(Unfit, match="is not a whole number"):
        parse_whole(raw)


@pytest.mark.parametrize(("raw", "share"), [(0.5, 0.5), (1, 1.0), ("0.25", 0.25), ("1", 1.0)])
def test_a_share_is_read(raw, share):
    assert parse_share(raw) == share


@pytest.mark.parametrize("raw", [0, 0.0, -0.1, 1.01, 2, "50%", "", True, math.nan, math.inf, 10**400, None])
def test_what_is_no_share_is_refused(raw):
    with pytest.raises(Unfit, match="is not a share"):
        parse_share(raw)


@pytest.mark.parametrize(("raw", "flag"), [(True, True), (False, False), ("true", True), ("FALSE", False)])
def test_a_flag_is_read(raw, flag):
    assert parse_flag(raw) is flag


@pytest.mark.parametrize("raw", ["", "yes", "1", 1, 0, None])
def test_what_is_no_flag_is_refused(raw):
    with pytest.raises(Unfit, match="is neither true nor false"):
        parse_flag(raw)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9463", Address("127.0.0.1", 9463)),
        ("10.0.0.1:0", Address("10.0.0.1", 0)),
        ("localhost:65535", Address("localhost", 65535)),
        ("relay.example_1.internal:80", Address("relay.example_1.internal", 80)),
        ("[::1]:9463", Address("::1", 9463, ipv6=True)),
        ("[::]:1", Address("::", 1, ipv6=True)),
        ("unix:/run/event-relay/relay.sock", Address(path="/run/event-relay/relay.sock")),
        ("unix:relay.sock", Address(path="relay.sock")),
    ],
)
def test_an_address_is_read_and_written_the_same(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not an address"),
        ("9463", "is not an address"),
        (":9463", "is not an address"),
        ("127.0.0.1", "is not an address"),
        ("127.0.0.1:", "is not an address"),
        ("127.0.0.1:http", "is not an address"),
        ("127.0.0.1:-1", "is not an address"),
        ("127.0.0.1:65536", "has a port beyond 65535"),
        ("::1:9463", "has an IPv6 host without brackets"),
        ("[::g]:9463", "is not an IPv6 address"),
        ("[127.0.0.1]:9463", "is not an IPv6 address"),
        ("256.0.0.1:9463", "is not an IPv4 address"),
        ("1.2.3:9463", "is not an IPv4 address"),
        ("a b:9463", "neither a name nor an IPv4 address"),
        ("http://127.0.0.1:9463", "has an IPv6 host without brackets|neither a name"),
        ("unix:", "names no socket"),
        ("unix:/" + "x" * 107, "longer than the 107 bytes"),
    ],
)
def test_what_is_no_address_is_told_why(text, reason):
    with pytest.raises(Unfit, match=reason):
        parse_address(text)


@pytest.mark.parametrize("text", ["", "v1/log_event", "/v1/log event", "/v1?k=1", "/v1#x", "/é"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(Unfit, match="is not a path"):
        parse_path(text)


@pytest.mark.parametrize(
    "text",
    ["*", "null", "http://localhost:3000", "https://app.example.com", "http://[::1]:3000", "chrome-extension://abcdef"],
)
def test_an_origin_is_read_as_browsers_send_it(text):
    assert parse_origin(text) == text


def test_an_origin_is_compared_in_lower_case():
    assert parse_origin("https://App.Example.com") == "https://app.example.com"


@pytest.mark.parametrize(
    "text", ["", "localhost:3000", "https://app.example.com/", "https://a.b/c", "https://", "//a.b", "https://u@a.b"]
)
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(Unfit, match="is not an origin"):
        parse_origin(text)


@pytest.mark.parametrize(
    "text", ["https://api.statsig.com/v1/log_event", "http://127.0.0.1:9465", "http://[::1]:1/x?y=z", "http://u:p@h"]
)
def test_a_url_is_taken(text):
    check_url(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must start with"),
        ("api.statsig.com/v1", "must start with"),
        ("ftp://host", "must start with"),
        ("socks5://host:1", "must start with"),
        ("https://", "is not a URL"),
        ("https://:443", "is not a URL"),
        ("https://host:0", "is not a URL"),
        ("https://host:99999", "look at its host and port"),
        ("https://host:x", "look at its host and port"),
        ("https://[::1", "look at its host and port"),
        ("https://a b", "is not a URL"),
        ("https://host/#top", "has a fragment"),
    ],
)
def test_what_is_no_url_is_told_why(text, reason):
    with pytest.raises(Unfit, match=reason):
        check_url(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  ", []),
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ('["a,b", "c"]', ["a,b", "c"]),
        ("[]", []),
        ("[::1]:9463", ["[::1]:9463"]),
        ("[::1]:9463,127.0.0.1:9463", ["[::1]:9463", "127.0.0.1:9463"]),
    ],
)
def test_a_list_is_split_at_commas_or_read_as_json(text, parts):
    assert split_list(text) == parts


@pytest.mark.parametrize("raw", [1, None, ["a"], "a\nb", "\x1b[31m", "\udcff", "\x00"])
def test_only_printable_text_is_text(raw):
    with pytest.raises(Unfit):
        read_text(raw)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reads_back_from_toml_as_it_was_written(text):
    assert reread(toml_text(text)) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_json_array_in_a_text_is_the_list(texts):
    assert split_list(json.dumps(texts)) == texts
