"""The scanner finds exactly what json finds, in one pass, at any depth."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.bodies import arrays, loads, objects, same, space, values

from relay.wire.scanner import Edit, NotJson, Value, elements, gap, members, skip, splice

if TYPE_CHECKING:
    from collections.abc import Iterator


@given(values, space, st.sampled_from([b"", b",", b"}", b"]", b" 1"]))
def test_a_value_ends_where_json_ends_it(value: bytes, before: bytes, after: bytes):
    text = before + value + after
    at = gap(text, 0)
    assert at == len(before)
    assert skip(text, at)[:2] == (at, len(before) + len(value))
    assert json.JSONDecoder(parse_int=float).raw_decode(text.decode(), at)[1] == len((before + value).decode())


@given(arrays(values))
def test_elements_are_those_of_json(array: bytes):
    found = [loads(array[value.start : value.end]) for value in elements(array, 0)]
    assert same(found, loads(array))


@given(objects(values))
def test_members_are_those_of_json_with_those_that_stand_twice(text: bytes):
    def read(part: bytes) -> object:
        return json.loads(part.decode(), object_pairs_hook=list, parse_int=float)

    found = [(member.name, read(text[member.value.start : member.value.end])) for member in members(text, 0)]
    assert same(found, read(text))
    for member in members(text, 0):
        assert json.loads(text[member.key_start : member.key_end].decode()) == member.name


@given(values)
def test_depth_is_the_number_of_levels(value: bytes):
    def levels(read: object) -> int:
        inner = read.values() if isinstance(read, dict) else read if isinstance(read, list) else None
        return 0 if inner is None else 1 + max(map(levels, inner), default=0)

    hook = lambda pairs: [item for _, item in pairs]  # noqa: E731 - so that members that stand twice count
    assert skip(value, 0).depth == levels(json.loads(value.decode(), object_pairs_hook=hook, parse_int=float))


@pytest.mark.parametrize(
    "text", [b"", b" ", b"{", b"[1", b'"a', b'"a\\', b'"a\\"', b"]", b",", b":", b'{"a}', b'[[],"]', b'{"a":"\\"}']
)
def test_a_value_that_never_ends_is_not_json(text: bytes):
    with pytest.raises(NotJson):
        skip(text, 0)


@pytest.mark.parametrize("text", [b"", b"1", b"[1,]", b"[,1]", b"[1 2]", b"[1}", b"[1", b"[1,", b"[", b'["]'])
def test_what_is_no_array_is_not_walked_to_its_end(text: bytes):
    with pytest.raises(NotJson):
        list(elements(text, 0))


@pytest.mark.parametrize(
    "text", [b"", b"1", b'{"a":1,}', b'{"a"}', b'{"a":}', b'{"a" 1}', b"{a:1}", b'{"a":1]', b'{"a":1', b"{", b'{"a']
)
def test_what_is_no_object_is_not_walked_to_its_end(text: bytes):
    with pytest.raises(NotJson):
        list(members(text, 0))


def test_a_million_levels_are_walked_without_recursion():
    text = b"[" * 1_000_000 + b"]" * 1_000_000
    assert skip(text, 0) == Value(0, len(text), 1_000_000)


@given(st.lists(st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"a", b" ", b"\n"]), max_size=30))
def test_any_bytes_are_walked_or_refused(pieces: list[bytes]):
    text = b"".join(pieces)
    for walk in (elements, members):
        try:
            found = list(walk(text, 0))
        except NotJson as exc:
            assert 0 <= exc.at <= len(text)  # noqa: PT017 - either outcome is right, this one says where
        else:
            assert all(text[0:1] in b"[{" for _ in found)


@given(st.binary(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.binary(max_size=3))))
def test_splicing_leaves_every_other_byte(text: bytes, wishes: list[tuple[int, int, bytes]]):
    edits, expected, at = [], b"", 0
    for start, end, put in sorted(wishes):
        if at <= start <= end <= len(text):
            edits.append(Edit(start, end, put))
            expected += text[at:start] + put
            at = end
    assert splice(text, edits) == expected + text[at:]


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the calls that Python makes, C functions included."""
    calls = [0]

    def count(_frame: object, event: str, _arg: object) -> None:
        calls[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


HOSTILE = {
    "brackets": lambda n: b"[" + b"[]," * n + b"[]]",
    "deep": lambda n: b"[" * n + b"]" * n,
    "strings": lambda n: b"[" + b'"a",' * n + b'"a"]',
    "escaped quotes": lambda n: b'["' + b'\\"' * n + b'"]',
    "backslashes": lambda n: b'["' + b"\\\\" * n + b'"]',
    "open strings": lambda n: b"[" + b'\\"' * n,
    "escaped open string": lambda n: b'["' + b'\\"' * n,
    "white space": lambda n: b"[" + b" " * n + b"1" + b" " * n + b"]",
    "numbers": lambda n: b"[" + b"1" * n + b"]",
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_work_grows_with_the_length_and_no_faster(shape: str):
    def work(n: int) -> int:
        text = HOSTILE[shape](n)
        with counted() as calls, suppress(NotJson):
            list(elements(text, 0))
        return calls[0]

    assert work(8_000) <= 8.5 * work(1_000) + 100


@pytest.mark.parametrize("shape", HOSTILE)
def test_no_shape_makes_the_expressions_backtrack(shape: str):
    text = HOSTILE[shape](200_000)
    began = time.process_time()
    with suppress(NotJson):
        list(elements(text, 0))
    assert time.process_time() - began < 2, "linear takes a tenth of a second, quadratic takes minutes"
