from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.errors import Refusal
from relay.observe import LaneNumbers, Observer, QueueNumbers, Snapshot, Trend
from relay.observe.metrics import CONTENT_TYPE, FAMILIES, Reading, process_registry
from relay.observe.observer import REFUSED_REASONS

# The contract: dashboards, alerts and scripts of other people hang on these names, types and labels.
REASONS_REFUSED = {"invalid", "too_large", "queue_full", "disk_error", "unauthorized"}
REASONS_DEAD = {"invalid", "rejected", "too_large", "poison", "expired", "corrupt"}
OUTCOMES = {
    "success", "retryable", "auth", "rejected", "timeout", "connect", "ambiguous", "bad_answer", "misconfigured",
}  # fmt: skip
CODES = {"200", "202", "204", "400", "401", "403", "404", "405", "408", "413", "415", "500", "503"}
STATES = {"active", "backing_off", "parked", "paused"}
CONTRACT: dict[str, tuple[str, dict[str, set[str]]]] = {
    "build_info": ("gauge", {"version": {"1.2.3"}}),
    "ingest_requests_total": ("counter", {"code": CODES}),
    "ingest_events_total": ("counter", {}),
    "ingest_bytes_total": ("counter", {}),
    "ingest_events_suppressed_total": ("counter", {}),
    "ingest_ambiguous_requests_total": ("counter", {}),
    "suspect_events_total": ("counter", {"reason": {"name_characters", "name_length", "metadata_size"}}),
    "ingest_events_rejected_total": ("counter", {"reason": REASONS_REFUSED}),
    "ingest_duration_seconds": ("histogram", {}),
    "ingest_in_flight_requests": ("gauge", {}),
    "queue_events": ("gauge", {}),
    "queue_bytes": ("gauge", {}),
    "queue_capacity_bytes": ("gauge", {}),
    "queue_in_flight_events": ("gauge", {}),
    "queue_seconds_until_full": ("gauge", {}),
    "queue_oldest_event_age_seconds": ("gauge", {"state": {"active", "parked"}}),
    "queue_lanes": ("gauge", {"state": STATES}),
    "queue_enqueued_events_total": ("counter", {}),
    "queue_recovered_events_total": ("counter", {}),
    "queue_acked_events_total": ("counter", {}),
    "queue_commit_duration_seconds": ("histogram", {}),
    "queue_commit_events": ("histogram", {}),
    "queue_disk_free_bytes": ("gauge", {}),
    "queue_disk_size_bytes": ("gauge", {}),
    "queue_volatile": ("gauge", {}),
    "dead_letter_events": ("gauge", {}),
    "dead_letter_recovered_events_total": ("counter", {}),
    "dead_letter_replayed_events_total": ("counter", {}),
    "dead_lettered_events_total": ("counter", {"reason": REASONS_DEAD}),
    "dropped_events_total": ("counter", {"reason": {"purged", "evicted", "corrupt"}}),
    "forward_requests_total": ("counter", {"outcome": OUTCOMES}),
    "forward_events_total": ("counter", {"outcome": OUTCOMES}),
    "forward_bytes_total": ("counter", {}),
    "forward_duration_seconds": ("histogram", {}),
    "forward_batch_events": ("histogram", {}),
    "delivery_delay_seconds": ("histogram", {}),
    "forward_last_success_timestamp_seconds": ("gauge", {}),
    "forward_backoff_seconds": ("gauge", {}),
    "forward_gate_limit": ("gauge", {}),
    "event_loop_lag_seconds": ("histogram", {}),
    "conservation_drift_events": ("gauge", {}),
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def snapshot(**changes) -> Snapshot:
    return Snapshot(
        **{"now": 1_800_000_000.0, "started_at": 1_799_990_000.0, "version": "1.2.3", "upstream": "u"} | changes
    )


def text(observer: Observer | None = None, stands: Snapshot | None = None, trend: Trend | None = None) -> str:
    reading = Reading(observer or Observer(), stands or snapshot(), trend or Trend(), process_registry())
    return reading.text().decode()


def samples(*args, **kwargs) -> Samples:
    families = text_string_to_metric_families(text(*args, **kwargs))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found["event_relay_" + name, tuple(sorted(labels.items()))]


def test_the_list_holds_the_contract_and_nothing_else():
    assert {family.name: family.type for family in FAMILIES} == {name: kind for name, (kind, _) in CONTRACT.items()}


@pytest.mark.parametrize("name", CONTRACT)
def test_every_metric_is_exposed_from_the_start_with_all_its_label_values(name):
    kind, labels = CONTRACT[name]
    shown = text()
    assert f"# TYPE event_relay_{name} {kind}\n" in shown
    found = samples()
    for label, values in labels.items():
        seen = {dict(pairs)[label] for full, pairs in found if full == f"event_relay_{name}"}
        assert seen == values


@pytest.mark.parametrize("name", [name for name, (kind, _) in CONTRACT.items() if kind == "counter"])
def test_every_counter_starts_at_zero(name):
    assert {number for (full, _), number in samples().items() if full == f"event_relay_{name}"} == {0.0}


def test_every_reason_a_refusal_can_have_is_in_the_list():
    def tree(of: type[Refusal]) -> set[str]:
        return {of.reason}.union(*(tree(sub) for sub in of.__subclasses__()))

    assert tree(Refusal) <= set(REFUSED_REASONS)


def test_the_process_and_the_interpreter_are_exposed_too():
    shown = text()
    for name in ("process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections_total"):
        assert f"\n{name}" in shown


def test_the_content_type_is_that_of_the_text_format():
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_what_happened_is_counted_under_its_own_name():
    observer = Observer(clock=lambda: 1_800_000_123.0)
    observer.request_began()
    observer.request_began()
    observer.request_ended()
    observer.request_answered(202, 0.003)
    observer.request_answered(503, 5.0)
    observer.events_accepted(10, 4_000)
    observer.events_suppressed(3)
    observer.events_refused("queue_full", 7)
    observer.request_ambiguous()
    observer.suspects_seen("name_length", 2)
    observer.commit_ended(0.004, 60)
    observer.loop_lagged(0.3)
    observer.attempt_ended("timeout", 100, 9_000, 30.0)
    observer.attempt_ended("success", 100, 9_000, 0.2)
    observer.batch_delivered(100, [(0.2, 90), (7_200.0, 10)])
    found = samples(observer)

    assert value(found, "ingest_in_flight_requests") == 1
    assert value(found, "ingest_requests_total", code="202") == 1
    assert value(found, "ingest_requests_total", code="503") == 1
    assert value(found, "ingest_duration_seconds_bucket", le="0.004") == 1
    assert value(found, "ingest_duration_seconds_sum") == pytest.approx(5.003)
    assert value(found, "ingest_events_total") == 10
    assert value(found, "ingest_bytes_total") == 4_000
    assert value(found, "ingest_events_suppressed_total") == 3
    assert value(found, "ingest_events_rejected_total", reason="queue_full") == 7
    assert value(found, "ingest_ambiguous_requests_total") == 1
    assert value(found, "suspect_events_total", reason="name_length") == 2
    assert value(found, "queue_commit_duration_seconds_bucket", le="0.004") == 1
    assert value(found, "queue_commit_events_sum") == 60
    assert value(found, "event_loop_lag_seconds_bucket", le="0.25") == 0
    assert value(found, "event_loop_lag_seconds_bucket", le="0.5") == 1
    assert value(found, "forward_requests_total", outcome="timeout") == 1
    assert value(found, "forward_events_total", outcome="success") == 100
    assert value(found, "forward_bytes_total") == 18_000
    assert value(found, "forward_duration_seconds_count") == 2
    assert value(found, "forward_batch_events_sum") == 100
    assert value(found, "forward_last_success_timestamp_seconds") == 1_800_000_123.0


def test_delivery_delay_weighs_every_event_and_not_every_chunk():
    observer = Observer()
    observer.batch_delivered(100, [(0.2, 90), (7_200.0, 10)])
    found = samples(observer)
    assert value(found, "delivery_delay_seconds_bucket", le="0.25") == 90
    assert value(found, "delivery_delay_seconds_bucket", le="3600.0") == 90
    assert value(found, "delivery_delay_seconds_count") == 100
    assert value(found, "delivery_delay_seconds_sum") == pytest.approx(90 * 0.2 + 10 * 7_200)


def test_a_wall_clock_set_back_gives_no_negative_delay():
    observer = Observer()
    observer.batch_delivered(1, [(-3600.0, 1)])
    assert value(samples(observer), "delivery_delay_seconds_sum") == 0


def test_how_things_stand_is_pulled_from_the_snapshot():
    queue = QueueNumbers(
        events=60, bytes=4_096, capacity_bytes=1 << 30, in_flight_events=20, recovered_events=5, enqueued_events=100,
        acked_events=40, dead_events=6, dead_recovered_events=2, dead_lettered_events={"poison": 5},
        dead_replayed_events=1, disk_free_bytes=7, disk_size_bytes=9, volatile=True,
    )  # fmt: skip
    lanes = (
        LaneNumbers(fingerprint="a", state="active", events=1, bytes=1, in_flight_events=0, oldest_age_seconds=2.5),
        LaneNumbers(fingerprint="b", state="backing_off", events=1, bytes=1, in_flight_events=0, oldest_age_seconds=9),
        LaneNumbers(fingerprint="c", state="parked", events=1, bytes=1, in_flight_events=0, oldest_age_seconds=99),
        LaneNumbers(fingerprint="d", state="paused", events=1, bytes=1, in_flight_events=0, oldest_age_seconds=100),
    )
    found = samples(stands=snapshot(queue=queue, lanes=lanes), trend=Trend(seconds_until_full=20_400))

    assert value(found, "queue_events") == 60
    assert value(found, "queue_in_flight_events") == 20
    assert value(found, "queue_volatile") == 1
    assert value(found, "queue_seconds_until_full") == 20_400
    assert value(found, "queue_oldest_event_age_seconds", state="active") == 9
    assert value(found, "queue_oldest_event_age_seconds", state="parked") == 100
    assert [value(found, "queue_lanes", state=state) for state in sorted(STATES)] == [1, 1, 1, 1]
    assert value(found, "dead_lettered_events_total", reason="poison") == 5
    assert value(found, "dead_lettered_events_total", reason="expired") == 0
    assert value(found, "dead_letter_events") == 6
    assert value(found, "conservation_drift_events") == 0


def test_a_queue_that_does_not_grow_is_never_full():
    assert value(samples(), "queue_seconds_until_full") == float("inf")


def test_a_status_nobody_listed_is_counted_all_the_same():
    observer = Observer()
    observer.request_answered(417, 0.001)
    assert value(samples(observer), "ingest_requests_total", code="417") == 1


def test_promtool_finds_nothing_to_mend():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    observer = Observer()
    observer.request_answered(202, 0.003)
    observer.batch_delivered(10, [(0.1, 10)])
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text(observer), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
