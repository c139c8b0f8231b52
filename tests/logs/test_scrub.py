"""No key, no credential, no person and no foreign object gets past the second line of defence."""

import json
import math
from enum import Enum
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.logs.scrub import HIDDEN_NAMES, ITEMS_MAX, TEXT_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX, scrub
from relay.spool.record import Record

KEY = "secret-9IWfdzNwExEYHEW4YfOQcFZ4xreZyFkbOXHaNbPsMwW"


def scrubbed(**fields):
    return dict(scrub(None, "info", fields))


@pytest.mark.parametrize("name", [*sorted(HIDDEN_NAMES), "API_KEY", "Statsig-Api-Key", "userID"])
@pytest.mark.parametrize("value", ["hunter2", b"hunter2", ["hunter2"], {"a": "hunter2"}, 4711])
def test_a_field_with_a_secret_name_is_hidden_whatever_it_holds(name, value):
    assert scrubbed(**{name: value}) == {name: "[hidden]"}


@pytest.mark.parametrize("name", ["events", "headers", "body", "envelope", "text", "request", "chunk"])
def test_a_field_that_may_be_a_count_passes_only_as_one(name):
    assert scrubbed(**{name: 12}) == {name: 12}
    assert scrubbed(**{name: [{"eventName": "hunter2"}]}) == {name: "[hidden]"}


def test_a_secret_name_is_found_below_the_top():
    line = scrubbed(upstream={"request_id": "r", "options": [{"api_key": "hunter2"}]})
    assert line == {"upstream": {"request_id": "r", "options": [{"api_key": "[hidden]"}]}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {KEY}.", "401 for secret-[hidden]."),
        ("client-abcdefghijklmnop0123", "client-[hidden]"),
        ("GET /v1/rgstr?k=client-x&st=js", "GET /v1/rgstr?k=[hidden]&st=js"),
        ("http://me:hunter2@proxy:3128/", "http://[hidden]@proxy:3128/"),
        ("b'statsig-api-key: hunter2'", "b'statsig-api-key: [hidden]"),
        ("('Statsig-Api-Key', 'hunter2')", "('Statsig-Api-Key', [hidden]"),
        ("Authorization: Bearer hunter2\nHost: x", "Authorization: [hidden]\nHost: x"),
        ("client-disconnected before secret-santa", "client-disconnected before secret-santa"),
    ],
)
def test_keys_and_credentials_are_taken_out_of_texts(text, shown):
    assert scrubbed(event=text, exception=text, error=ValueError(text), path=Path("/x"), inner=[text]) == {
        "event": shown,
        "exception": shown,
        "error": f"ValueError: {shown}",
        "path": "/x",
        "inner": [shown],
    }


def test_of_a_foreign_object_only_the_type_is_told():
    class Proxy(msgspec.Struct):
        url: str = "http://me:hunter2"

    record = Record(
        key=KEY, envelope=b"hunter2", headers=b"", text=b"hunter2", events=1, accepted_at_ms=0, skew_ms=None
    )
    line = scrubbed(proxy=Proxy(), record=record, raw=b"hunter2", many=[record])
    assert line == {"proxy": "<Proxy>", "record": "<Record>", "raw": "<bytes>", "many": ["<Record>"]}


def test_plain_values_pass_as_they_are():
    class Color(Enum):
        RED = "red"

    fields = {"a": 1, "b": 0.5, "c": True, "d": None, "e": "ü", "f": [1, "x"], "g": {"h": 1}}
    assert scrubbed(**fields) == fields
    assert scrubbed(color=Color.RED, pair=(1, 2)) == {"color": "red", "pair": [1, 2]}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_becomes_text(number):
    assert scrubbed(seconds=number) == {"seconds": str(number)}


def test_everything_has_a_bound():
    deep = value = {}
    for _ in range(50):
        value["x"] = value = {}
    line = scrubbed(long="x" * 10**6, exception="x" * 10**6 + "the end", many=list(range(10**5)), deep=deep)
    assert len(line["long"]) == TEXT_CHARACTERS_MAX + 1
    assert len(line["exception"]) == TRACEBACK_CHARACTERS_MAX
    assert line["exception"].endswith("the end")
    assert len(line["many"]) == ITEMS_MAX
    assert len(json.dumps(line["deep"])) < 100


def test_an_object_that_holds_itself_ends():
    loop = []
    loop.append(loop)
    assert json.dumps(scrubbed(loop=loop)) == '{"loop": [[[["<list>"]]]]}'


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner) | st.frozensets(st.text()),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values))
def test_whatever_is_logged_the_line_is_valid_json(fields):
    line = dict(scrub(None, "info", fields))
    assert json.loads(json.dumps(line, allow_nan=False)).keys() == line.keys()


@given(st.dictionaries(st.sampled_from(["message", "error", "detail", "event"]), st.text(max_size=20)), st.text())
def test_a_real_key_never_passes_wherever_it_stands(fields, before):
    for name in fields:
        line = scrub(None, "info", {**fields, name: f"{before} {KEY}"})
        assert KEY not in json.dumps(dict(line))
