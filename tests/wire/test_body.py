"""Every body that real clients send is taken, its events byte for byte; a refusal says why."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire.bodies import LIMITS, NOW_MS, around, events, loads, read, same, values

from relay.errors import InvalidRequest, Refusal, TooLarge
from relay.wire import Limits, body, split_events
from relay.wire.scanner import NESTING_MAX

GOOD = b'{"eventName":"a","time":1}'


def limits(**changed: int) -> Limits:
    return msgspec.structs.replace(LIMITS, **changed)


ODD_MEMBERS = [
    b'"value":null',
    b'"value":"42.31"',
    b'"value":42',
    b'"value":1e+21',
    b'"value":true',
    b'"value":123456789012345678901234567890',
    b'"value":%b' % (b"9" * 5_000),
    b'"value":NaN',
    b'"value":Infinity',
    b'"value":-Infinity',
    b'"value":1e400',
    rb'"value":"\ud83d"',
    rb'"\ud83d":"\udc00\ud83d"',
    b'"time":1795462698738.5',
    b'"time":1795462698',
    b'"time":"2026-11-23T20:18:18.738Z"',
    b'"time":1e400',
    b'"time":true',
    b'"time":[]',
    b'"time":123456789012345678901234567890',
    b'"user":null',
    b'"user":{"userID":""}',
    b'"user":{"userID":12345}',
    b'"metadata":null',
    b'"metadata":[]',
    b'"metadata":"text"',
    b'"metadata":{"a":[1,{"b":null}],"c":1.50,"d":"\\/"}',
    b'"metadata":{"deep":%b%b}' % (b"[" * 400, b"]" * 400),
    b'"secondaryExposures":null',
    b'"secondaryExposures":[]',
    b'"secondaryExposures":[{"gate":"g","gateValue":"true","ruleID":"r"}]',
    b'"statsigMetadata":null',
    b'"statsigMetadata":{}',
    b'"statsigMetadata":{"sdkType":"x","more":[1,2,3]}',
    b'"unknown":{"kept":"as it is"}',
    b'"eventName":"twice"',
    b'"unknown":1,"unknown":2',
    '"value":"日本語 🎉 Zürich"'.encode(),
    b'"value":"\x7f"',
    b'"" : ""',
]


@pytest.mark.parametrize("member", ODD_MEMBERS, ids=lambda member: repr(member[:40])[2:-1])
@pytest.mark.parametrize("form", [b'{"eventName":"a","time":1,%b}', b'{ %b , "time" : 1, "eventName":"a"}'])
def test_an_odd_but_honest_event_arrives_byte_for_byte(form: bytes, member: bytes):
    event = form.replace(b"%b", member)
    taken = read(b'{"events":[%b,%b,%b]}' % (GOOD, event, GOOD))
    assert split_events(taken.text) == [GOOD, event, GOOD]
    assert (taken.events, taken.rejected, taken.envelope) == (3, (), b"")


@pytest.mark.parametrize(
    "name", ["statsig::gate_exposure", "statsig::session_recording", "auto_capture::page_view", " "]
)
def test_reserved_and_strange_names_are_taken(name: str):
    assert read(b'{"events":[{"eventName":"%b","time":1}]}' % name.encode()).events == 1


@pytest.mark.parametrize(
    ("body", "envelope"),
    [
        (b'{"events":[%b]}', b""),
        (b'{"events":[%b],"user":null}', b'"user":null'),
        (b'{"statsigMetadata":{"a": 1},"events":[%b],"user":{}}', b'"statsigMetadata":{"a": 1},"user":{}'),
        (b'{"statsigMetadata" : {"a": 1} , "events" : [%b] , "user" : {} }', b'"statsigMetadata":{"a": 1},"user":{}'),
        (b'{"events":[%b],"clientTime":"2026","user":NaN}', b'"clientTime":"2026","user":NaN'),
        (b'{"user":1,"events":[%b],"user":2}', b'"user":1,"user":2'),
        (b'{"us\\u0065r":1,"events":[%b]}', b'"us\\u0065r":1'),
        (b'{"user":{"events":[%b]},"events":[%b]}', b'"user":{"events":[%b]}'),
        (b'{"a":"\\"events\\":[%b]","\\u0065vents":[%b]}', b'"a":"\\"events\\":[%b]"'),
        (b'{"":0,"events":[%b],"":""}', b'"":0,"":""'),
        (b'\xef\xbb\xbf{"events":[%b]}', b""),
        (b' \r\n{ "events" : [ %b ] }\t', b""),
    ],
)
def test_the_envelope_is_every_other_member_in_order(body: bytes, envelope: bytes):
    if b'\\"events' in body:  # an event inside a string has its quotes escaped
        first, escaped = GOOD, GOOD.replace(b'"', b'\\"')
        assert read(body.replace(b"%b", escaped, 1).replace(b"%b", first)).envelope == envelope.replace(b"%b", escaped)
        return
    taken = read(body.replace(b"%b", GOOD))
    assert (taken.text, taken.events, taken.envelope) == (GOOD, 1, envelope.replace(b"%b", GOOD))


@given(st.data())
def test_the_events_of_any_body_come_out_as_they_went_in(data: st.DataObject):
    sent = data.draw(st.lists(events(), min_size=1, max_size=4))
    text, beside = data.draw(around(sent))
    taken = read(text, strip_private=False)
    assert split_events(taken.text) == sent
    assert (taken.events, taken.rejected) == (len(sent), ())
    assert taken.envelope == b",".join(key + b":" + value for key, value in beside)


@given(st.data())
def test_the_usual_way_and_the_exact_way_agree(data: st.DataObject):
    text, _ = data.draw(around(data.draw(st.lists(events(), min_size=1, max_size=4))))
    usual = body.parse_usual(text, limits=LIMITS, strip_private=False)
    exact = body._read_exact(text, LIMITS, NOW_MS)
    if usual:
        assert split_events(usual.text) == split_events(exact.text)
        assert msgspec.structs.replace(usual, text=exact.text) == exact


@given(
    st.lists(st.one_of(events(), values, st.sampled_from([b"tru", b"{a:1}", b'"\t"', b'"\xff"', b"01"])), max_size=5)
)
def test_good_events_are_taken_and_each_other_one_rejected_with_its_bytes(parts: list[bytes]):
    def usable(part: bytes) -> bool:
        try:
            event = loads(part)
        except ValueError:
            return False
        return isinstance(event, dict) and isinstance(event.get("eventName"), str) and event["eventName"] != ""

    good = [part for part in parts if usable(part)]
    text = b'{"events":[' + b",".join(parts) + b"]}"
    if not good:
        with pytest.raises(InvalidRequest):
            read(text, strip_private=False)
        return
    taken = read(text, strip_private=False)
    assert taken.events == len(good)
    stamped = [loads(event) for event in split_events(taken.text)]
    assert all(event["time"] is not None for event in stamped)
    assert [(event.index, event.raw) for event in taken.rejected] == [
        (index, part) for index, part in enumerate(parts) if not usable(part)
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"null", "no JSON object"),
        (b'["a"]', "no JSON object"),
        (b"k=v", "no JSON object"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "no JSON object"),
        ('{"events":[{"eventName":"a"}]}'.encode("utf-16"), "UTF-16"),
        ('{"events":[{"eventName":"a"}]}'.encode("utf-16-le"), "UTF-16"),
        ('{"events":[{"eventName":"a"}]}'.encode("utf-16-be"), "UTF-16"),
        ('{"events":[{"eventName":"a"}]}'.encode("utf-32"), "UTF-16"),
        (b"{}", "no `events`"),
        (b'{"user":{}}', "no `events`"),
        (b'{"Events":[%b]}', "no `events`"),
        (b'{"events":null}', "`events` is null, not an array"),
        (b'{"events":{"0":%b}}', "`events` is an object, not an array"),
        (b'{"events":"%s"}', "`events` is a string, not an array"),
        (b'{"events":7}', "`events` is a number, not an array"),
        (b'{"events":0}', "`events` is a number, not an array"),
        (b'{"events":[]}', "`events` is empty"),
        (b'{"events":[ ]}', "`events` is empty"),
        (b'{"events":[%b],"events":[%b]}', "twice"),
        (b'{"events":[%b],"\\u0065vents":[]}', "twice"),
        (b'{"events":[%b],"user":1,"events":null}', "twice"),
        (b'{"events":[{}]}', r"none of the 1 events is usable; events\[0\]: the event has no eventName"),
        (b'{"events":[1,{"eventName":""}]}', r"none of the 2 .* events\[0\]: the event is a number, not an object"),
        (b'{"events":[%b]', "not JSON: byte"),
        (b'{"events":[%b]}}', "not JSON: byte"),
        (b'{"events":[%b]}{}', "not JSON: byte"),
        (b'{"events":[%b]}\0', "not JSON: byte"),
        (b'{"events":[%b,]}', "not JSON: byte"),
        (b'{"events":[%b}', "not JSON: byte"),
        (b'{"events":[%b],}', "not JSON: byte"),
        (b'{"events":[%b],"user":tru}', "beside `events` is not JSON"),
        (b'{"events":[%b],"us\ter":1}', "beside `events` is not JSON"),
        (b'{"events":[%b],"user":[}]}', "not JSON"),
        (b'{"events":[%b],"user":"\xff"}', "beside `events` is not UTF-8"),
        (b'{"events":[%b],"\xff":1}', "beside `events` is not UTF-8"),
        (b'{"events":[%b],"user":' + b"[" * 2_000 + b"]" * 2_000 + b"}", "beside `events` is nested deeper than 512"),
        (b'{"events":' + b"[" * 2_000 + b"]" * 2_000 + b"}", "events.0.: the event is nested deeper than 512"),
        (b'{"events":[{"eventName":"a","x":"\xff"}]}', "events.0.: the event is not UTF-8"),
    ],
)
def test_a_body_that_can_never_be_accepted_is_told_why(text: bytes, why: str):
    with pytest.raises(InvalidRequest, match=why):
        read(text.replace(b"%b", GOOD))


def test_an_event_too_deep_for_any_decoder_is_rejected_alone():
    deep = b'{"eventName":"a","time":1,"metadata":%b%b}' % (b"[" * 2_000, b"]" * 2_000)
    taken = read(b'{"events":[%b,%b]}' % (deep, GOOD))
    assert (taken.text, [event.raw for event in taken.rejected]) == (GOOD, [deep])
    assert "512 levels" in taken.rejected[0].message


def test_the_exact_way_takes_the_deepest_event_it_promises_and_no_deeper():
    def event(levels: int) -> bytes:
        return b'{"eventName":"a","time":1,"value":NaN,"metadata":%b%b}' % (b"[" * levels, b"]" * levels)

    taken = read(b'{"events":[%b,%b]}' % (event(NESTING_MAX - 1), event(NESTING_MAX)))
    assert (taken.events, taken.rejected[0].index) == (1, 1)


def test_events_without_a_time_get_the_clients_and_nothing_else_changes():
    sent = [
        b'{ "eventName":"a"}',
        b'{"time":null,"eventName":"a"}',
        b'{"eventName":"a", "time" : null , "metadata":{"time":null}}',
        b'{"eventName":"a","\\u0074ime":null}',
        b'{"eventName":"a","time":5,"time":null}',
        b'{"eventName":"a","time":null,"time":5}',
        b'{"eventName":"a","metadata":{"time":5}}',
        b'{"eventName":"a","time":0}',
        b'{"eventName":"a","time":""}',
    ]
    now = b"%d" % (NOW_MS - 3_600_000)
    taken = read(b'{"events":[' + b" , ".join(sent) + b"]}", skew_ms=3_600_000)
    assert split_events(taken.text) == [
        b'{"time":%b, "eventName":"a"}' % now,
        b'{"time":%b,"eventName":"a"}' % now,
        b'{"eventName":"a", "time" : %b , "metadata":{"time":null}}' % now,
        b'{"eventName":"a","\\u0074ime":%b}' % now,
        b'{"eventName":"a","time":5,"time":%b}' % now,
        b'{"eventName":"a","time":null,"time":5}',
        b'{"time":%b,"eventName":"a","metadata":{"time":5}}' % now,
        b'{"eventName":"a","time":0}',
        b'{"eventName":"a","time":""}',
    ]


@pytest.mark.parametrize(("skew_ms", "time"), [(None, NOW_MS), (0, NOW_MS), (-7_000, NOW_MS + 7_000)])
def test_a_stamp_is_in_the_clients_clock(skew_ms: int | None, time: int):
    assert read(b'{"events":[{"eventName":"a"}]}', skew_ms=skew_ms).text == b'{"time":%d,"eventName":"a"}' % time


@pytest.mark.parametrize(
    ("events", "stamped"),
    [
        (b'{"eventName":"a","time":1}', False),
        (b'{"eventName":"a","time":NaN}', False),
        (b'{"eventName":"a","time":1},{"eventName":"b"}', True),
        (b'{"eventName":"a","time":null}', True),
        (b'{"eventName":"a","time":1},7', False),
    ],
)
def test_it_is_told_whether_an_event_was_given_its_time(events: bytes, stamped: bool):  # noqa: FBT001 – a column of the table
    assert read(b'{"events":[' + events + b"]}").stamped is stamped


def test_private_attributes_are_gone_from_all_that_is_returned():
    user = b'{"userID":"u","privateAttributes":{"ssn":"123-45-6789"}}'
    text = b'{"user":%b,"events":[{"eventName":"a","time":1,"user":%b},{"eventName":"b","user":%b},{"user":%b}]}'
    taken = read(text % (user, user, user, user))
    assert taken.events == 2
    assert taken.envelope == b'"user":{"userID":"u"}'
    assert b"123-45" not in msgspec.json.encode(taken) + taken.text + taken.rejected[0].raw
    assert taken.rejected[0].raw == b'{"user":{"userID":"u"}}'
    assert read(text % (user, user, user, user), strip_private=False).text.count(b"123-45") == 2


@given(st.data())
def test_stripping_leaves_events_without_private_members_alone(data: st.DataObject):
    sent = data.draw(st.lists(events(), min_size=1, max_size=3))
    text, _ = data.draw(around(sent))
    plain, stripped = read(text, strip_private=False), read(text)
    for before, after in zip(split_events(plain.text), split_events(stripped.text), strict=True):
        if b"private" not in before:
            assert after == before
        else:
            assert same(loads(after).get("eventName"), loads(before).get("eventName"))


def test_each_cap_refuses_what_is_past_it_and_names_its_key():
    ten = b'{"events":[' + b",".join([GOOD] * 10) + b"]}"
    assert read(ten, limits=limits(events_per_request_max=10)).events == 10
    with pytest.raises(TooLarge, match=r"more than 9 events \(listen\.events_per_request_max\)"):
        read(ten, limits=limits(events_per_request_max=9))
    with pytest.raises(TooLarge, match=r"listen\.events_per_request_max"):
        read(ten.replace(b"1}", b"NaN}"), limits=limits(events_per_request_max=9))
    around_it = b'{"a":1,"events":[%b],"user" : "%b"}' % (GOOD, b"u" * 100)
    size = len(b'"a":1,"user":"%b"' % (b"u" * 100))
    assert len(read(around_it, limits=limits(envelope_bytes_max=size)).envelope) == size
    with pytest.raises(TooLarge, match=r"listen\.envelope_bytes_max"):
        read(around_it, limits=limits(envelope_bytes_max=size - 1))


def test_an_event_too_large_is_rejected_alone_and_is_413_where_nothing_else_came():
    large = b'{"eventName":"a","time":1,"x":"%b"}' % (b"x" * 100)
    small = limits(event_bytes_max=len(large) - 1)
    assert read(b'{"events":[%b]}' % large, limits=limits(event_bytes_max=len(large))).events == 1
    taken = read(b'{"events":[%b,%b]}' % (large, GOOD), limits=small)
    assert taken.text == GOOD
    assert [(event.index, event.reason, event.raw) for event in taken.rejected] == [(0, "too_large", large)]
    with pytest.raises(TooLarge, match=r"listen\.event_bytes_max"):
        read(b'{"events":[%b,%b]}' % (large, large), limits=small)
    with pytest.raises(InvalidRequest, match=r"events\[1\]: the event has no eventName"):
        read(b'{"events":[%b,{}]}' % large, limits=small)


def test_small_events_in_a_long_body_are_not_taken_for_a_large_one():
    taken = read(b'{"events":[%b]}' % b",".join([GOOD] * 50), limits=limits(event_bytes_max=len(GOOD)))
    assert (taken.events, taken.rejected) == (50, ())


def test_suspects_are_counted_and_untouched_on_both_ways():
    for value in (b"1", b"NaN"):
        event = b'{"eventName":"a[0]","time":1,"value":%b}' % value
        taken = read(b'{"events":[%b,%b]}' % (event, GOOD))
        assert taken.suspects == {"name_characters": 1}
        assert split_events(taken.text)[0] == event


SECRETS = [
    b'"SECRET"',
    b"{SECRET}",
    b'{"eventName":"SECRET","a":SECRET}',
    b'{"SECRET":1}',
    b'{"eventName":{"a":"SECRET"}}',
]


@pytest.mark.parametrize("event", SECRETS)
def test_no_error_text_repeats_anything_of_the_body(event: bytes):
    for text in (b'{"events":[%b]}', b'{"SECRET":[%b', b'{"events":[],"SECRET":%b}', b'{"events":{"SECRET":%b}}'):
        with pytest.raises(Refusal) as refusal:
            read(text % event)
        assert "SECRET" not in str(refusal.value)
    rejected = read(b'{"events":[%b,%b]}' % (GOOD, event)).rejected[0]
    assert "SECRET" not in rejected.message


def test_a_body_made_of_brackets_is_refused_before_it_is_walked():
    brackets = b"[]," * body.BRACKETS_MAX + b"0"
    for slow in (b'{"events":[{"eventName":"a","x":[%b,NaN]}]}', b'{"events":[{"user":{"privateAttributes":[%b]}}]}'):
        with pytest.raises(InvalidRequest, match="opening brackets"):
            read(slow % brackets)
    assert read(b'{"events":[{"eventName":"a","time":1,"x":[%b]}]}' % brackets).events == 1


MIB = 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        b'{"events":[' + b'{"eventName":"a","time":1},' * (4 * MIB // 27) + b"1]}",
        b'{"events":[' + b'{"\\u0065ventName":"a","time":1},' * (4 * MIB // 32) + b"1]}",
        b'{"events":[' + b"0," * (2 * MIB) + b"0]}",
        b'{"events":[{"eventName":"a","x":[' + b'"",' * MIB + b"[]," * 50_000 + b"NaN]}]}",
        b'{"events":[1],' + b",".join(b'"%d":0' % n for n in range(400_000)) + b"}",
        b'{"events":[%b],"a":%b1}' % (GOOD, b" " * (4 * MIB)),
        b'{"events":[{"eventName":"%b","user":{"privateAttributes":0,"a":%b%b}}]}'
        % (b"a" * (4 * MIB), b"[" * 50_000, b"]" * 50_000),
    ],
    ids=["many events", "escaped names", "many numbers", "many values", "many members", "white space", "deep, private"],
)
def test_no_body_takes_more_than_a_few_times_its_size_in_memory(text: bytes):
    tracemalloc.start()
    try:
        with contextlib.suppress(Refusal):
            read(text)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3.2 * len(text) + MIB
