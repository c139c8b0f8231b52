from __future__ import annotations

import re

import msgspec
import pytest
from admin.scenes import GIB, MIB, NOW, OUTAGE, PARKED, attempt, failures, forward, lane, queue, snapshot

from relay.admin import headline
from relay.observe import Trend

IDLE = Trend()
FLOWING = Trend(accepted_per_second=240, delivered_per_second=238)
DRAINING = Trend(accepted_per_second=240, delivered_per_second=3_512)
FILLING = Trend(accepted_per_second=240, growth_bytes_per_second=41_000, seconds_until_full=20_405)

TABLE = {
    "nothing has come yet": (
        snapshot(queue=queue(acked_events=0), forward=forward(last_success_at=None, attempts=())),
        IDLE,
        "good",
        "Idle: no event has come yet. Point an SDK here and its events show up on this page.",
    ),
    "idle": (
        snapshot(forward=forward(last_success_at=NOW - 190)),
        IDLE,
        "good",
        "Idle: nothing waits. Last delivery 3 min 10 s ago.",
    ),
    "flowing": (
        snapshot(queue=queue(events=54), lanes=(lane(events=54),)),
        FLOWING,
        "good",
        "Flowing: events go out as they come in. 240/s in, 238/s out. 54 events wait, the oldest for 0.4 s.",
    ),
    "one event waits": (
        snapshot(queue=queue(events=1), lanes=(lane(events=1),)),
        IDLE,
        "good",
        "Flowing: events go out as they come in. 0/s in, 0/s out. 1 event waits, the oldest for 0.4 s.",
    ),
    "catching up": (
        snapshot(queue=queue(events=121_620), lanes=(lane(events=121_620, oldest_age_seconds=742),)),
        DRAINING,
        "busy",
        (
            "Catching up: 121,620 events wait. Delivering 3,512/s, the oldest event is 12 min 22 s old. "
            "Done in about 37 s."
        ),
    ),
    "more comes in than goes out": (
        snapshot(queue=queue(events=121_620), lanes=(lane(events=121_620, oldest_age_seconds=742),)),
        Trend(accepted_per_second=500, delivered_per_second=400, seconds_until_full=90_000),
        "busy",
        (
            "Catching up: 121,620 events wait. Delivering 400/s, the oldest event is 12 min 22 s old. "
            "More comes in than goes out. Full in 1 d 1 h at this rate."
        ),
    ),
    "nothing moves and nobody says why": (
        snapshot(queue=queue(events=10), lanes=(lane(events=10, oldest_age_seconds=45),)),
        IDLE,
        "warn",
        (
            "Waiting for upstream: 10 events wait. "
            "Nothing was delivered lately; the oldest event is 45 s old and safe on disk."
        ),
    ),
    "backing off": (
        snapshot(queue=queue(events=121_620), forward=OUTAGE, lanes=(lane(oldest_age_seconds=742),)),
        FILLING,
        "warn",
        (
            "Backing off: upstream answers 503. Events are accepted and safe on disk. Next try in 9 s. "
            "Full in 5 h 40 min at this rate."
        ),
    ),
    "upstream cannot be reached, a probe is under way": (
        snapshot(
            forward=forward(
                gate_limit=0, backoff_seconds=4.0, next_try_in_seconds=0.0, attempts=failures(3, "connect", 0)
            )
        ),
        IDLE,
        "warn",
        "Backing off: upstream cannot be reached. Events are accepted and safe on disk. Trying now.",
    ),
    "upstream is silent": (
        snapshot(forward=forward(backoff_seconds=4.0, attempts=failures(1, "timeout", 0))),
        IDLE,
        "warn",
        "Backing off: upstream does not answer in time. Events are accepted and safe on disk.",
    ),
    "the address is wrong": (
        snapshot(forward=forward(gate_limit=0, next_try_in_seconds=60, attempts=failures(1, "misconfigured", 404))),
        IDLE,
        "bad",
        (
            "Backing off: upstream answers 404. Events are accepted and safe on disk. "
            "Check upstream.url and what stands between. Next try in 1 min."
        ),
    ),
    "a captive portal": (
        snapshot(forward=forward(gate_limit=0, next_try_in_seconds=60, attempts=failures(1, "bad_answer", 200))),
        IDLE,
        "bad",
        (
            "Backing off: upstream answers 200, but not as Statsig does. Events are accepted and safe on disk. "
            "Check upstream.url and what stands between. Next try in 1 min."
        ),
    ),
    "what speaks of one key is not held against the host": (
        snapshot(
            forward=forward(
                gate_limit=0,
                next_try_in_seconds=5,
                attempts=(attempt("retryable", 429), *failures(1, "retryable", 502)),
            )
        ),
        IDLE,
        "warn",
        "Backing off: upstream answers 502. Events are accepted and safe on disk. Next try in 5 s.",
    ),
    "in memory nothing is called safe": (
        snapshot(queue=queue(events=5, volatile=True), forward=OUTAGE, lanes=(lane(events=5),)),
        IDLE,
        "warn",
        (
            "Backing off: upstream answers 503. Events are accepted and held in memory, which a reboot loses. "
            "Next try in 9 s."
        ),
    ),
    "one key parked": (
        snapshot(queue=queue(events=1_258), lanes=(lane(events=54), PARKED)),
        FLOWING,
        "warn",
        (
            "Parked: the key c41d90aa is refused. Upstream refuses the key with 401. "
            "1,204 events wait until it works again, safe on disk. Next probe in 41 s. All other keys are delivered."
        ),
    ),
    "two keys parked": (
        snapshot(
            queue=queue(events=1_214),
            lanes=(PARKED, lane("default", "parked", events=10, next_try_in_seconds=12.4, error="no key")),
        ),
        IDLE,
        "warn",
        "Parked: 2 keys are refused. 1,214 events wait until they work again, safe on disk. Next probe in 13 s.",
    ),
    "the default key parked": (
        snapshot(queue=queue(events=1), lanes=(lane("default", "parked", events=1, error="no key"),)),
        IDLE,
        "warn",
        "Parked: the default key is refused. No key. 1 event waits until it works again, safe on disk.",
    ),
    "one key slowed": (
        snapshot(
            queue=queue(events=34),
            lanes=(
                lane(state="backing_off", next_try_in_seconds=3.0, error="upstream answers 429"),
                lane("b", events=0),
            ),
        ),
        FLOWING,
        "warn",
        (
            "Slowed: the key 8f3a21bc waits before the next try. Upstream answers 429. 34 events wait, safe on disk. "
            "Next try in 3 s."
        ),
    ),
    "paused": (
        snapshot(queue=queue(events=34), lanes=(lane(state="paused", oldest_age_seconds=9_000),)),
        IDLE,
        "warn",
        (
            "Paused: an operator holds the key 8f3a21bc. 34 events wait, safe on disk. "
            "To let them go: relay queue resume 8f3a21bc."
        ),
    ),
    "nearly full": (
        snapshot(queue=queue(events=9, bytes=930 * MIB), lanes=(lane(),)),
        FILLING,
        "warn",
        "Nearly full: 930 MiB of 1 GiB used. Accepting 240/s, delivering 0/s. Full in 5 h 40 min at this rate.",
    ),
    "full while upstream is down": (
        snapshot(queue=queue(ready=False, events=9_000_000, bytes=GIB - MIB), forward=OUTAGE),
        FILLING,
        "bad",
        (
            "Full: new events are refused with 503. 1 GiB of 1 GiB used, safe on disk. "
            "Upstream answers 503. Next try in 9 s."
        ),
    ),
    "full while draining": (
        snapshot(queue=queue(ready=False, events=9_000_000, bytes=GIB)),
        DRAINING,
        "bad",
        "Full: new events are refused with 503. 1 GiB of 1 GiB used, safe on disk. Delivering 3,512/s.",
    ),
    "disk low": (
        snapshot(queue=queue(ready=False, disk_free_bytes=41 * MIB)),
        IDLE,
        "bad",
        (
            "Disk low: new events are refused with 503. 41 MiB free, 64 MiB must stay free. "
            "What is queued is safe on disk. Free some disk space."
        ),
    ),
    "the disk fails": (
        snapshot(queue=queue(ready=False, refusal="the last commit failed: disk I/O error")),
        IDLE,
        "bad",
        ("Not accepting: new events are refused with 503. The last commit failed: disk I/O error. The log says more."),
    ),
    "starting": (
        snapshot(phase="starting", queue=queue(ready=False)),
        IDLE,
        "busy",
        "Starting: the queue is being opened. Until then apps get 503, and send again.",
    ),
    "recovering": (
        snapshot(queue=queue(recovering=True, events=400_000, recovered_events=400_000)),
        IDLE,
        "busy",
        (
            "Recovering: reading what an earlier run left. 400,000 events found so far. "
            "New events are accepted and safe on disk."
        ),
    ),
    "stopping": (
        snapshot(phase="draining", queue=queue(events=12)),
        DRAINING,
        "busy",
        "Stopping: delivering what it can. 12 events left, safe on disk; the next start delivers what remains.",
    ),
    "dead letters": (
        snapshot(queue=queue(dead_lettered_events={"poison": 3}), forward=forward(last_success_at=NOW - 2)),
        IDLE,
        "warn",
        (
            "Idle: nothing waits. Last delivery 2 s ago. "
            "3 events are dead letters, which upstream will never take: relay dlq list."
        ),
    ),
    "the books are off": (
        snapshot(queue=queue(events=4, enqueued_events=8_123_459), lanes=(lane(events=4),)),
        FLOWING,
        "bad",
        (
            "Flowing: events go out as they come in. 240/s in, 238/s out. 4 events wait, the oldest for 0.4 s. "
            "The books are off by 1 event: that is a bug of the relay, please report it."
        ),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_sentence_says_the_state(name):
    state, trend, tone, text = TABLE[name]
    said = headline(state, trend)
    assert (said.tone, said.text) == (tone, text)


@pytest.mark.parametrize("name", TABLE)
def test_every_sentence_is_whole(name):
    state, trend, *_ = TABLE[name]
    for part in re.split(r"(?<=\.) ", headline(state, trend).text):
        assert part[0].isupper() or part[0].isdigit()
        assert part.endswith(".")


def test_a_full_queue_outranks_whatever_else_is_wrong():
    worst = snapshot(
        queue=queue(ready=False, bytes=GIB, events=10, dead_lettered_events={"poison": 1}),
        forward=OUTAGE,
        lanes=(PARKED,),
    )
    said = headline(worst, IDLE)
    assert said.lead.startswith("Full:")
    assert said.tone == "bad"
    assert "dead letter" in said.rest


def test_a_queue_that_fills_in_months_is_no_news():
    state = snapshot(queue=queue(events=5), forward=OUTAGE, lanes=(lane(),))
    assert "Full" not in headline(state, Trend(seconds_until_full=5_000_000)).text


def test_a_sentence_needs_no_history():
    assert headline(msgspec.structs.replace(snapshot(), queue=queue(events=3))).lead.startswith("Flowing")
