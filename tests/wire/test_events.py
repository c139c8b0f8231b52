"""What is JSON, what an event weighs, and how texts are taken apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire.bodies import events, loads, space

from relay.wire import cut, split_events
from relay.wire.events import Unusable, count_suspects, is_json, is_utf8, plain, probe

PIECES = [
    *(
        b'"',
        b"\\",
        b"\\u",
        b"\\ud83d",
        b"d83d",
        b"\\uDC00",
        b"0041",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"-",
        b"I",
        b"N",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"1",
        b"e",
        b".",
        b"0",
        b'"a"',
        b'"a":',
        b"null",
        b"true",
        b"\n",
        b"\x01",
    ),
]


def is_pythons_json(text: bytes) -> bool:
    try:
        loads(text)
    except ValueError:
        return False
    return True


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
@example(b'"\\NaN"')
@example(b'"\\Infinity"')
@example(b"1NaN")
@example(b"-NaN")
@example(b"--Infinity")
@example(b"{NaN:1}")
@example(b"[NaNNaN]")
@example(b'"\\u-Infinity"')
@example(b'"\\\\ud83d"')
@example(b'"\\ud8"')
@example(b'{"\\ud83d":NaN,"b":[-Infinity,Infinity]}')
def test_json_is_what_python_takes_for_json(text: bytes):
    assert is_json(text) == is_pythons_json(text)


@given(st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join))
def test_json_inside_brackets_is_what_python_takes_for_json(text: bytes):
    for wrapped in (b"[" + text + b"]", b'"' + text + b'"', b'{"a":' + text + b"}"):
        assert is_json(wrapped) == is_pythons_json(wrapped)


def test_half_a_pair_never_turns_a_key_into_one_of_ours():
    with pytest.raises(Unusable, match="has no eventName"):
        probe(rb'{"\ud865ventName":"a"}')
    assert plain(rb'"\ud865"') == rb'"\uee65"'


@pytest.mark.parametrize("character", ["é", "日", "\U0001f389"])
def test_characters_across_the_steps_of_the_check_are_utf8(character: str):
    text = b"x" * (256 * 1024 - 1) + character.encode() + b"x"
    assert is_utf8(text)
    assert not is_utf8(text[:-2])
    assert not is_utf8(text + b"\xff")


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\xbd", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_what_only_looks_like_utf8_is_not(text: bytes):
    assert not is_utf8(text)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (b"null", "is null, not an object"),
        (b"1", "is a number, not an object"),
        (b"NaN", "is a number, not an object"),
        (b'"secret"', "is a string, not an object"),
        (b"true", "is a boolean, not an object"),
        (b"[]", "is an array, not an object"),
        (b"{}", "has no eventName"),
        (b'{"EventName":"secret"}', "has no eventName"),
        (b'{"eventName":""}', "has an empty eventName"),
        (b'{"eventName":null}', "has an eventName that is not a string"),
        (b'{"eventName":12345}', "has an eventName that is not a string"),
        (b'{"eventName":["secret"]}', "has an eventName that is not a string"),
        (b'{"eventName":NaN}', "has an eventName that is not a string"),
        (b'{"eventName":1,"a":secret}', "is not JSON"),
        (b'{"eventName":"secret","a":01}', "is not JSON"),
        (b'{"eventName":"secret","a":"\t"}', "is not JSON"),
        (b'{"eventName":"secret","a":"\\x"}', "is not JSON"),
        (b'{"eventName":"a"}x', "is not JSON"),
    ],
)
def test_an_unusable_event_is_told_why_and_not_what(event: bytes, why: str):
    with pytest.raises(Unusable) as unusable:
        probe(event)
    assert str(unusable.value) == why


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        (b'{"eventName":"fine name: a.b-c_d/e"}', {}),
        *((b'{"eventName":"a%c"}' % mark, {"name_characters": 1}) for mark in b"[]{}<>#=;&$%|"),
        (rb'{"eventName":"a\\b"}', {"name_characters": 1}),
        (rb'{"eventName":"a\nb"}', {"name_characters": 1}),
        (rb'{"eventName":"a\u0000b"}', {"name_characters": 1}),
        (b'{"eventName":"%b"}' % (b"n" * 64), {}),
        (b'{"eventName":"%b"}' % (b"n" * 65), {"name_length": 1}),
        (('{"eventName":"' + "日" * 64 + '"}').encode(), {}),
        (b'{"eventName":"a","value":"%b"}' % (b"v" * 128), {}),
        (b'{"eventName":"a","value":"%b"}' % (b"v" * 129), {"name_length": 1}),
        (('{"eventName":"a","value":"' + "日" * 128 + '"}').encode(), {}),
        (b'{"eventName":"a","value":%b}' % (b"1" * 200), {}),
        (b'{"eventName":"a","metadata":{"a":"%b"}}' % (b"m" * 4_088), {}),
        (b'{"eventName":"a","metadata":{"a":"%b"}}' % (b"m" * 4_089), {"metadata_size": 1}),
        (b'{"eventName":"#%b","metadata":"%b"}' % (b"n" * 70, b"m" * 5_000),
         {"name_characters": 1, "name_length": 1, "metadata_size": 1}),
        (b'{"eventName":"statsig::diagnostics","metadata":"%b"}' % (b"m" * 5_000), {}),
        (b'{"eventName":"auto_capture::page[view]","value":"%b"}' % (b"v" * 500), {}),
    ],
)  # fmt: skip
def test_suspects_are_counted_by_the_documented_bounds(event: bytes, counts: dict[str, int]):
    assert count_suspects([probe(event)]) == counts


def test_every_suspect_counts():
    assert count_suspects([probe(b'{"eventName":"#"}'), probe(b'{"eventName":"a"}')] * 3) == {"name_characters": 3}


@given(st.lists(events(), max_size=6), space)
def test_a_text_is_split_into_the_bytes_that_were_joined(parts: list[bytes], between: bytes):
    text = (between + b"," + between).join(parts)
    assert split_events(text) == parts


@given(st.lists(events(), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 400))
def test_a_cut_keeps_every_event_in_order_within_both_bounds(parts: list[bytes], events_max: int, bytes_max: int):
    text = b",".join(parts)
    chunks = cut(text, len(parts), events_max=events_max, bytes_max=bytes_max)
    assert b",".join(chunk for chunk, _ in chunks) == text
    for chunk, count in chunks:
        assert len(split_events(chunk)) == count <= events_max
        assert len(chunk) <= bytes_max or count == 1
    for (chunk, count), (following, _) in itertools.pairwise(chunks):
        next_bytes = len(split_events(following)[0])
        assert count == events_max or len(chunk) + 1 + next_bytes > bytes_max, "no chunk ends before it has to"


@pytest.mark.parametrize(
    ("bytes_max", "counts"), [(32, [3, 1]), (31, [2, 2]), (21, [2, 2]), (20, [1] * 4), (1, [1] * 4)]
)
def test_commas_count_against_the_bytes_of_a_chunk(bytes_max: int, counts: list[int]):
    text = b",".join([b'{"a":1234}'] * 4)
    assert [count for _, count in cut(text, 4, events_max=9, bytes_max=bytes_max)] == counts


def test_a_text_that_fits_is_given_back_unread():
    text = b"not even JSON"
    assert cut(text, 3, events_max=3, bytes_max=len(text))[0][0] is text
