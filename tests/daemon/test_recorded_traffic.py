"""Recorded requests of real SDKs, replayed byte for byte: each event arrives once, its bytes unchanged."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from daemon.harness import CountingUpstream, Daemon, captured_requests, post, running

from relay.commands.witness import split_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPTURES = Path(__file__).parents[1] / "captures"
REQUESTS = [(name, request) for name, request in captured_requests(CAPTURES) if request["method"] == "POST"]
OURS_TO_SET = {"host", "connection", "content-length", "accept-encoding"}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, CountingUpstream]]:
    folder = tmp_path_factory.mktemp("relay")
    with CountingUpstream() as upstream, running(Daemon(folder, upstream.url)) as daemon:
        yield daemon, upstream


def sent_events(body: bytes) -> list[bytes]:
    if body.startswith(b"\x1f\x8b"):
        body = gzip.decompress(body)
    elif body.startswith(b"\x28\xb5\x2f\xfd"):
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return split_events(body)


def test_there_is_recorded_traffic() -> None:
    assert len(REQUESTS) >= 9


@pytest.mark.parametrize(("name", "request_"), REQUESTS, ids=[name for name, _ in REQUESTS])
def test_a_recorded_request_arrives_whole_and_once(
    name: str, request_: dict[str, object], relay: tuple[Daemon, CountingUpstream], figure: Callable[[str], None]
) -> None:
    daemon, upstream = relay
    before = len(upstream.accepted)
    body = base64.b64decode(str(request_["body_base64"]))
    events = sent_events(body)
    pairs = [(str(key), str(value)) for key, value in request_["headers"]]
    headers = {key: value for key, value in pairs if key.lower() not in OURS_TO_SET}
    query = f"?{request_['query_string']}" if request_["query_string"] else ""
    answer = post(f"http://127.0.0.1:{daemon.port}{request_['path']}{query}", body, headers)
    assert answer.accepted, answer
    daemon.wait_drained()
    deliveries = upstream.accepted[before:]
    arrived = [event for delivery in deliveries for event in delivery.received.events]
    strangers = list((Counter(arrived) - Counter(events)).elements())
    absent = list((Counter(events) - Counter(arrived)).elements())
    assert not strangers, f"{len(strangers)} of {len(arrived)} arrived changed or again, such as {strangers[0]!r}"
    assert not absent, f"{len(absent)} of {len(events)} did not arrive, such as {absent[0]!r}"
    lower = {key.lower(): value for key, value in pairs}
    key = lower.get("statsig-api-key") or request_["query"]["k"]
    assert {delivery.received.header("statsig-api-key") for delivery in deliveries} == {key}
    for header in ("statsig-sdk-type", "statsig-sdk-version", "statsig-server-session-id"):
        if header in lower:
            assert {delivery.received.header(header) for delivery in deliveries} == {lower[header]}, header
    figure(f"recorded {name}: {len(events)} events, each once, bytes unchanged")
