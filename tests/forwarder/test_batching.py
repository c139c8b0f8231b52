from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.forwarder.batching import Batch, Bounds, Waiting, body_bytes, carve_smallest, halve, halve_chunk, plan
from relay.spool import Chunk, Record, Ref
from relay.spool.record import decode, encode
from relay.wire import split_events


def pair(number: int, events: int, *, user: int = 0, skew_ms: int | None = None, pad: int = 0) -> tuple[Ref, Chunk]:
    text = b",".join(b'{"eventName":"%d-%d%s"}' % (number, at, b"x" * pad) for at in range(events))
    row = encode(Record("k", b'"u":%d' % user, b"", text, events, 1000 + number, skew_ms))
    return Ref(number, 1, events, len(row), 1000 + number), decode(number, 1, row)


@st.composite
def lanes(draw) -> list[tuple[Ref, Chunk]]:
    shapes = draw(
        st.lists(
            st.tuples(st.integers(1, 9), st.integers(0, 2), st.sampled_from([None, 0, 900, 1100]), st.integers(0, 99)),
            max_size=25,
        )
    )
    return [pair(at, n, user=user, skew_ms=skew, pad=pad) for at, (n, user, skew, pad) in enumerate(shapes, 1)]


@given(lanes(), st.integers(1, 20), st.integers(50, 3000))
def test_planning_loses_nothing_mixes_nothing_and_keeps_to_the_bounds(pairs, events_max, bytes_max):
    batches = plan(pairs, Bounds(events_max, bytes_max))
    assert sorted(ref.id for batch in batches for ref in batch.refs) == [ref.id for ref, _ in pairs]
    assert [batch.first_id for batch in batches] == sorted(batch.first_id for batch in batches)
    for batch in batches:
        assert [ref.id for ref in batch.refs] == [chunk.id for chunk in batch.chunks]
        assert [ref.id for ref in batch.refs] == sorted(ref.id for ref in batch.refs)
        assert len({chunk.travels_with() for chunk in batch.chunks}) == 1
        if len(batch.refs) > 1:
            assert batch.events <= events_max
            assert body_bytes(batch.chunks) <= bytes_max


def test_planning_fills_a_batch_before_it_begins_another():
    batches = plan([pair(at, 4) for at in range(1, 8)], Bounds(10, 1 << 20))
    assert [batch.events for batch in batches] == [8, 8, 8, 4]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40))
def test_halves_are_complete_in_order_and_as_even_as_chunks_allow(sizes):
    batch = Batch(tuple(Ref(at, 1, size, size, 0) for at, size in enumerate(sizes)), attempts=3, first_attempt_at_ms=9)
    left, right = halve(batch, sizes)
    assert left.refs + right.refs == batch.refs
    assert left.refs
    assert right.refs
    assert abs(left.events - right.events) <= max(sizes) * 2
    assert (left.attempts, right.first_attempt_at_ms) == (3, 9)


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=12), st.booleans())
def test_a_chunk_is_halved_into_records_that_hold_the_same_raw_events(pads, by_bytes):
    events = [b'{"eventName":"%d","v":NaN,"s":"\\ud83d,%s"}' % (at, b"z" * pad) for at, pad in enumerate(pads)]
    record = Record("key", b'"u":1', b"a: b", b",".join(events), len(events), 77, -5)
    left, right = halve_chunk(decode(1, 1, encode(record)), "key", by_bytes=by_bytes)
    assert split_events(left.text) + split_events(right.text) == events
    assert left.events + right.events == len(events)
    for half in (left, right):
        assert half.events == len(split_events(half.text)) >= 1
        assert (half.travels_with(), half.accepted_at_ms, half.dead) == (record.travels_with(), 77, None)


def test_by_bytes_a_chunk_is_cut_beside_its_big_event():
    events = [b'{"eventName":"big","p":"%s"}' % (b"x" * 9000), *(b'{"eventName":"%d"}' % at for at in range(9))]
    chunk = decode(1, 1, encode(Record("k", b"", b"", b",".join(events), 10, 0, None)))
    assert halve_chunk(chunk, "k", by_bytes=True)[0].events == 1
    assert halve_chunk(chunk, "k", by_bytes=False)[0].events == 5


def test_a_probe_risks_the_smallest_chunk_and_the_rest_waits_whole():
    batch = Batch((Ref(1, 1, 5, 500, 0), Ref(2, 1, 1, 90, 0), Ref(3, 1, 9, 900, 0)))
    probe, rest = carve_smallest(batch)
    assert [ref.id for ref in probe.refs] == [2]
    assert [ref.id for ref in rest.refs] == [1, 3]
    assert carve_smallest(probe) == (probe, None)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 999)), unique_by=lambda pair: pair[1]), st.integers(0, 60))
def test_the_oldest_batch_that_is_due_goes_first(batches, now):
    waiting = Waiting()
    for ready_at, number in batches:
        waiting.add(Batch((Ref(number, 1, 1, number, 0),), ready_at=ready_at))
    due = sorted(number for ready_at, number in batches if ready_at <= now)
    assert [waiting.take(now).first_id for _ in due] == due
    assert waiting.take(now) is None
    assert len(waiting) == len(batches) - len(due)
    assert waiting.next_at() == min((at for at, _ in batches if at > now), default=None)
