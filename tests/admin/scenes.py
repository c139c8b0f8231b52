"""The states a relay can be in, as snapshots: what the sentence, the page and the command are tried on."""

from __future__ import annotations

import math

from relay.observe import AttemptNumbers, ForwardNumbers, History, LaneNumbers, QueueNumbers, Snapshot
from relay.observe.history import SAMPLE_SECONDS

NOW = 1_795_462_698.0  # 2026-11-23 19:38:18 UTC
MIB = 1 << 20
GIB = 1 << 30


def queue(**changes) -> QueueNumbers:
    """A queue whose books balance, unless the changes say otherwise."""
    numbers = {
        "events": 0,
        "bytes": 3 * MIB,
        "capacity_bytes": GIB,
        "recovered_events": 0,
        "disk_free_bytes": 12 * GIB,
        "disk_free_bytes_min": 64 * MIB,
        "disk_size_bytes": 50 * GIB,
    } | changes
    acked = numbers.setdefault("acked_events", 8_123_456)
    dead = sum(numbers.get("dead_lettered_events", {}).values())
    gone = sum(numbers.get("dropped_events", {}).values())
    numbers.setdefault("enqueued_events", acked + dead + numbers["events"] - numbers["recovered_events"])
    numbers.setdefault("dead_events", dead - gone)
    return QueueNumbers(**numbers)


def forward(**changes) -> ForwardNumbers:
    numbers = {"gate_limit": 8, "gate_limit_max": 8, "last_success_at": NOW - 1.6, "attempts": successes(8)}
    return ForwardNumbers(**numbers | changes)


def attempt(outcome: str = "success", status: int = 202, **changes) -> AttemptNumbers:
    numbers = {
        "ended_at": NOW - 2, "outcome": outcome, "status": status, "events": 412, "bytes": 21_400, "seconds": 0.18,
        "fingerprint": "8f3a21bc",
    }  # fmt: skip
    return AttemptNumbers(**numbers | changes)


def successes(number: int) -> tuple[AttemptNumbers, ...]:
    return tuple(
        attempt(
            ended_at=NOW - 1.6 - i * 2.1,
            events=380 + 37 * i % 90,
            seconds=0.15 + i % 4 / 50,
            fingerprint=("8f3a21bc", "0b77e4d2", "default")[i % 3],
        )
        for i in range(number)
    )


def failures(number: int, outcome: str = "retryable", status: int = 503, **changes) -> tuple[AttemptNumbers, ...]:
    return tuple(
        attempt(outcome, status, ended_at=NOW - 12 - i * 31, events=1_000, bytes=48_000, **changes)
        for i in range(number)
    )


def lane(fingerprint: str = "8f3a21bc", state: str = "active", **changes) -> LaneNumbers:
    numbers = {"events": 34, "bytes": 14_200, "in_flight_events": 0, "oldest_age_seconds": 0.4}
    return LaneNumbers(fingerprint=fingerprint, state=state, **numbers | changes)


def snapshot(**changes) -> Snapshot:
    numbers = {"now": NOW, "started_at": NOW - 191_000, "version": "0.1.0", "upstream": "api.statsig.com"}
    numbers |= {"queue": queue(), "forward": forward()}
    return Snapshot(**numbers | changes)


BACKLOG = (
    lane(events=112_400, bytes=11 * MIB, oldest_age_seconds=742, in_flight_events=6_000),
    lane("0b77e4d2", events=9_100, bytes=900_000, oldest_age_seconds=310, in_flight_events=1_000),
    lane("default", events=120, bytes=30_000, oldest_age_seconds=12),
)
PARKED = lane(
    "c41d90aa", "parked", events=1_204, bytes=160_000, oldest_age_seconds=10_900, next_try_in_seconds=41,
    error="upstream refuses the key with 401",
)  # fmt: skip
OUTAGE = forward(
    gate_limit=0, backoff_seconds=32.0, next_try_in_seconds=8.2, last_success_at=NOW - 500,
    attempts=(*failures(9), *successes(3)),
)  # fmt: skip

SCENES: dict[str, Snapshot] = {
    "idle": snapshot(forward=forward(last_success_at=NOW - 190)),
    "flowing": snapshot(queue=queue(events=54, in_flight_events=34), lanes=(lane(), lane("0b77e4d2", events=20))),
    "catching up": snapshot(queue=queue(events=121_620, bytes=14 * MIB, in_flight_events=7_000), lanes=BACKLOG),
    "backing off": snapshot(queue=queue(events=121_620, bytes=220 * MIB), forward=OUTAGE, lanes=BACKLOG),
    "parked": snapshot(queue=queue(events=1_258), lanes=(lane(), lane("0b77e4d2", events=20), PARKED)),
    "dead letters": snapshot(
        queue=queue(
            dead_lettered_events={"rejected": 212, "poison": 1, "expired": 0, "invalid": 38}, acked_events=90_210
        ),
        forward=forward(
            attempts=(
                attempt("rejected", 400, events=1, detail='{"error": "event <script>alert(1)</script> is no event"}'),
                *successes(5),
            )
        ),
    ),
    "full": snapshot(
        queue=queue(ready=False, events=9_400_000, bytes=GIB - 2 * MIB),
        forward=OUTAGE,
        lanes=(lane(events=9_400_000, bytes=GIB - 3 * MIB, oldest_age_seconds=31_000),),
    ),
    "disk low": snapshot(queue=queue(ready=False, events=400, disk_free_bytes=41 * MIB), lanes=(lane(events=400),)),
}


def history(name: str) -> History:
    """Fifteen minutes that could have led to the scene, seen at second 900 of a clock that stands still."""
    clock = [0.0]
    end, past = SCENES[name].queue, History(lambda: clock[0])
    for at in range(0, 900, SAMPLE_SECONDS):
        clock[0] = at
        past.sample(snapshot(queue=_on_the_way(name, end, at)))
    clock[0] = 900.0
    return past


def _on_the_way(name: str, end: QueueNumbers, at: int) -> QueueNumbers:
    done, left = at / 900, 900 - at
    wobble = 1 + 0.08 * math.sin(at / 31) + 0.05 * math.sin(at / 7)
    climb = {
        "idle": 0.0,
        "catching up": (0.05 + 2.2 * done if done < 0.7 else 1.59 - 1.97 * (done - 0.7)) * wobble,
        "backing off": max(0.0, (done - 0.45) / 0.55),
        "full": min(1.0, 0.6 + done * 0.55),
        "parked": 0.4 + 0.6 * done,
    }.get(name, wobble)
    supply = 0 if name in ("idle", "dead letters") else 240
    delivered = {"catching up": 3_512, "backing off": 0, "full": 0}.get(name, supply)
    return QueueNumbers(
        events=int(end.events * climb),
        bytes=int(end.bytes * (climb if name in ("backing off", "full") else 1)),
        enqueued_events=end.enqueued_events - supply * left,
        acked_events=end.acked_events - delivered * left,
    )
