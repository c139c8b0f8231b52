"""privateAttributes of users never come through, and no other byte changes."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.bodies import loads, objects, same, values

from relay.wire.private import may_hold_private, without_private
from relay.wire.scanner import NotJson

SECRET = b'"privateAttributes":{"ssn":"123-45-6789","nested":[{"user":{"privateAttributes":1}},"}"]}'


@pytest.mark.parametrize(
    ("user", "kept"),
    [
        (b"{%b}", b"{}"),
        (b"{ %b }", b"{ }"),
        (b'{"a":1,%b}', b'{"a":1}'),
        (b'{"a":1 , %b }', b'{"a":1  }'),
        (b'{%b,"a":1}', b'{"a":1}'),
        (b'{%b , "a":1}', b'{ "a":1}'),
        (b'{"a":1,%b,"b":2}', b'{"a":1,"b":2}'),
        (b"{%b,%b}", b"{}"),
        (b'{"a":1,%b,%b}', b'{"a":1}'),
        (b'{"a":1,%b,%b,%b}', b'{"a":1}'),
        (b'{%b,"a":1,%b}', b'{"a":1}'),
        (b'{%b,%b,"a":1,%b,%b}', b'{"a":1}'),
    ],
)
@pytest.mark.parametrize(
    "member",
    [
        SECRET,
        b'"privateAttributes" : \n {}',
        b'"privateAttributes":"}],"',
        rb'"private\u0041ttributes":[1,2]',
        rb'"\u0070\u0072ivat\u0065Attribut\u0065\u0073":{"a":"\u0070"}',
        rb'"privat\u0065Attributes":-1e5',
    ],
)
def test_the_member_goes_with_exactly_one_of_its_commas(user: bytes, kept: bytes, member: bytes):
    for where in (b'{"user":%b}', b'{"events":[{"user":%b,"time":1}]}', rb'{"\u0075s\u0065r" : %b}'):
        cut = without_private(where % user.replace(b"%b", member))
        assert cut.replace(b" ", b"") == (where % kept).replace(b" ", b"")
        json.loads(cut)


@pytest.mark.parametrize(
    "body",
    [
        b'{"privateAttributes":{"a":1},"events":[]}',
        b'{"metadata":{"privateAttributes":1}}',
        b'{"user":[{"privateAttributes":1}]}',
        b'{"user":{"custom":{"privateAttributes":1}}}',
        b'{"users":{"privateAttributes":1}}',
        b'{"a":"user","b":{"privateAttributes":1}}',
        b'{"x\\"user":{"privateAttributes":1}}',
        b'{"user":"privateAttributes","a":{"privateAttributes":2}}',
        b'{"user":{"a":"privateAttributes"}}',
        b'{"user":{"a":"\\"privateAttributes\\":1"}}',
        b'{"user":{"privateAttribute":1,"PrivateAttributes":2,"xprivateAttributes":3}}',
        rb'{"user":{"private\\u0041ttributes":1}}',
        rb'{"user":{"a":"\u0041"}}',
        b'{"user":{"privateAttributes":null}}',
        b'{"user":{"a":1,"privateAttributes" : null , "b":2}}',
        rb'{"user":{"private\u0041ttributes":null}}',
    ],
)
def test_what_is_no_members_of_a_user_stays(body: bytes):
    assert without_private(body) == body


@pytest.mark.parametrize("value", [b'null"123-45"', b"null[123-45]", b"null123-45", b"null:123-45"])
def test_nothing_private_hides_behind_a_null(value: bytes):
    with contextlib.suppress(NotJson):
        assert b"123-45" not in without_private(b'{"user":{"privateAttributes":' + value + b"}}")


def test_users_are_found_wherever_they_stand():
    body = b'{"events":[{"metadata":{"deep":[{"user":{"a":{"user":{%b,"b":1}},%b}}]}}],"user":{%b}}' % ((SECRET,) * 3)
    assert without_private(body) == b'{"events":[{"metadata":{"deep":[{"user":{"a":{"user":{"b":1}}}}]}}],"user":{}}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"events":[{"eventName":"caf\\u00e9","metadata":{"a":"\\"b\\""}}]}',
        b'{"events":[{"user":{"privateAttributes":null}},{"user":{"privateAttributes" : null}}]}',
    ],
)
def test_the_usual_body_is_handed_back_itself(body: bytes):
    assert not may_hold_private(body)


@pytest.mark.parametrize("name", [b"privateAttributes", rb"private\u0041ttributes", rb"\u0070rivateAttributes"])
@pytest.mark.parametrize("value", [b"1", b" \n{}", b'"null"', b"nul", b"[null]", b'null"a"', b"null{}", b"nullx"])
def test_no_spelling_of_the_name_passes_for_usual(name: bytes, value: bytes):
    assert may_hold_private(b'{"user":{"privateAttributes":null},"events":[{"user":{"' + name + b'":' + value + b"}}]}")


def strip(pairs: list[tuple[str, Any]], *, of_user: bool = False) -> Any:
    return [
        (name, again(value, of_user=name == "user"))
        for name, value in pairs
        if not (of_user and name == "privateAttributes" and value is not None)
    ]


class Pairs(list[tuple[str, Any]]):
    """An object as json read it, members that stand twice included."""


def again(value: Any, *, of_user: bool = False) -> Any:
    if isinstance(value, Pairs):
        return Pairs(strip(value, of_user=of_user))
    return [again(item) for item in value] if isinstance(value, list) else value


def read(text: bytes) -> Any:
    return json.loads(text.decode(), object_pairs_hook=Pairs, parse_int=float)


@given(objects(values))
def test_exactly_the_private_members_of_users_are_gone(body: bytes):
    assert same(read(without_private(body)), again(read(body)))


private_users = st.recursive(
    values,
    lambda inner: st.lists(
        st.tuples(st.sampled_from([b'"user"', b'"privateAttributes"', b'"a"', rb'"us\u0065r"']), inner), max_size=4
    ).map(lambda members: b"{" + b" , ".join(key + b": " + value for key, value in members) + b"}"),
    max_leaves=10,
)


@given(private_users)
def test_nested_users_and_members_that_stand_twice_are_cut_alike(body: bytes):
    assert same(read(without_private(body)), again(read(body)))
    assert same(loads(without_private(without_private(body))), loads(without_private(body)))


@pytest.mark.parametrize(
    "body",
    [
        b'{"user":{"privateAttributes":',
        b'{"user":{"privateAttributes":1',
        b'{"user":{"privateAttributes":1}',
        b'"privateAttributes"}',
    ],
)
def test_an_open_bracket_is_not_json(body: bytes):
    with pytest.raises(NotJson):
        without_private(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"user":' * 60_000 + b'{"privateAttributes":1}' + b"}" * 60_000,
        b'{"user":{"a":0' + b',"privateAttributes":1' * 60_000 + b"}}",
        b'{"user":{' + b'"privateAttributes":1,' * 60_000 + b'"a":0}}',
        b'{"user":{"a":0,' + b" " * 2_000_000 + b'"privateAttributes":1}}',
        b'{"user":{"privateAttributes":' + b"[" * 500_000 + b"]" * 500_000 + b"}}",
        b'{"user":{"privateAttributes":' * 60_000 + b"1" + b"}}" * 60_000,
        b'["privateAttributes"' + b',"\\u0041' * 100_000,
    ],
    ids=["nested users", "twice, last", "twice, first", "white space", "deep", "private in private", "open strings"],
)
def test_no_shape_takes_more_than_linear_time(body: bytes):
    began = time.process_time()
    with contextlib.suppress(NotJson):
        without_private(body)
    assert time.process_time() - began < 2, "linear takes a tenth of a second, quadratic takes minutes"
