"""Bodies for the wire's tests: limits, a short way to read one, and JSON as bytes with every freedom JSON leaves."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from relay.wire import Limits, Parsed, parse_body

LIMITS = Limits(event_bytes_max=10 << 20, events_per_request_max=20_000, envelope_bytes_max=256 << 10)
NOW_MS = 1_795_462_698_000


def read(body: bytes, *, limits: Limits = LIMITS, skew_ms: int | None = None, strip_private: bool = True) -> Parsed:
    return parse_body(body, limits=limits, now_ms=NOW_MS, skew_ms=skew_ms, strip_private=strip_private)


def loads(text: bytes | str) -> Any:
    """Read JSON as Python does, without its bound on the digits of an integer."""
    return json.loads(text if isinstance(text, str) else text.decode(), parse_int=float)


def same(one: Any, other: Any) -> bool:
    """Compare what json read, NaN being equal to itself."""
    return json.dumps(one) == json.dumps(other)


space = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t ", b" \r\n"])
scalars = st.one_of(
    st.sampled_from(
        [
            *(b"null", b"true", b"false", b"0", b"-0", b"1.5", b"1e+21", b"1e400", b"123456789012345678901234567890"),
            *(b"NaN", b"Infinity", b"-Infinity", b'""', b'"NaN"', rb'"\ud83d"', rb'"\ud83d\ude00"', rb'"\\ud83d"'),
            *(rb'"\""', rb'"\\"', rb'"}],{[\\\""', b'"user"', b'"privateAttributes"', b'"\xe6\x97\xa5"', rb'"\u0041"'),
        ]
    ),
    st.integers().map(lambda number: b"%d" % number),
    st.text(max_size=8).map(lambda text: json.dumps(text).encode()),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=8).map(
        lambda text: json.dumps(text, ensure_ascii=False).encode()
    ),
)
keys = st.one_of(
    st.sampled_from(
        [
            *(b'"user"', rb'"\u0075ser"', b'"privateAttributes"', rb'"private\u0041ttributes"', b'"time"', b'"a"'),
            *(b'""', rb'"x\"user"', rb'"\\user"', b'"events"', b'"metadata"', b'"eventName"', rb'"\u0074ime"'),
        ]
    ),
    st.text(max_size=4).map(lambda text: json.dumps(text).encode()),
)


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[bytes]) -> bytes:
    inner = draw(st.lists(items, max_size=4))
    return b"[" + draw(space) + b",".join(draw(space) + item + draw(space) for item in inner) + b"]"


@st.composite
def objects(draw: st.DrawFn, items: st.SearchStrategy[bytes]) -> bytes:
    return wrap(draw, draw(st.lists(st.tuples(keys, items), max_size=5)))


def wrap(draw: st.DrawFn, members: list[tuple[bytes, bytes]]) -> bytes:
    """Write members as an object, with white space wherever it may stand."""
    pieces = [draw(space) + key + draw(space) + b":" + draw(space) + value + draw(space) for key, value in members]
    return b"{" + (b",".join(pieces) or draw(space)) + b"}"


values = st.recursive(scalars, lambda inner: arrays(inner) | objects(inner), max_leaves=12)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """A usable event with a time, its members in any order and some of them twice."""
    name = draw(st.sampled_from([b'"a"', rb'"\ud83d"', b'"purchase"', rb'"\u0061"']))
    time = draw(st.sampled_from([b"1", b"1795462698738.5", b'"2026-11-23T00:00:00Z"', b"1e400", b"true", b"[]"]))
    other = st.tuples(keys.filter(lambda key: loads(key) not in ("eventName", "time")), values)
    members = [(b'"eventName"', name), (b'"time"', time), *draw(st.lists(other, max_size=4))]
    return wrap(draw, draw(st.permutations(members)))


@st.composite
def around(draw: st.DrawFn, inside: list[bytes]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A body with these events; gives the members beside them as well."""
    other = st.tuples(keys.filter(lambda key: loads(key) != "events"), values)
    beside = draw(st.lists(other, max_size=3))
    array = b"[" + b",".join(draw(space) + event + draw(space) for event in inside) + b"]"
    at = draw(st.integers(0, len(beside)))
    key = draw(st.sampled_from([b'"events"', b'"events"', rb'"\u0065vents"']))
    body = wrap(draw, [*beside[:at], (key, array), *beside[at:]])
    return draw(space) + body + draw(space), beside
