"""What the proofs of deploy/ share: where it lies, the tools they call, and a metrics page as the relay writes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.observe import ForwardNumbers, LaneNumbers, Observer, QueueNumbers, Snapshot, Trend
from relay.observe.metrics import Reading, process_registry

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(scope="session")
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program, from this environment or the machine's; where it is absent, skip and say what to install."""

    def run(
        name: str, *words: str | Path, needs: str, cwd: Path | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed ({needs})")
        return subprocess.run(
            [found, *map(str, words)], capture_output=True, text=True, cwd=cwd, timeout=seconds, check=False
        )

    return run


class Samples(NamedTuple):
    """What the relay's metrics page holds: every name, and the values of each label."""

    names: frozenset[str]
    families: frozenset[str]
    """The relay's own, as they are declared: a histogram once."""
    labels: dict[str, dict[str, set[str]]]
    """name -> label -> the values it has"""


class Life:
    """A relay's numbers, moving as in a busy one; `page()` is its metrics page."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.dropped = 0
        self.turns = 0
        self._process = process_registry()

    def turn(self) -> None:
        """Let a little of everything happen."""
        self.turns += 1
        seen = self.observer
        for code in (202, 202, 202, 503, 400):
            seen.request_answered(code, 0.004)
        seen.events_accepted(events=64, bytes=6400)
        seen.events_suppressed(1)
        seen.events_refused("queue_full", 4)
        seen.request_ambiguous()
        seen.suspects_seen("name_length", 1)
        seen.commit_ended(0.3, 64)
        seen.loop_lagged(0.001)
        seen.attempt_ended("success", 64, 4000, 0.2)
        seen.attempt_ended("auth", 1, 100, 0.1)
        seen.batch_delivered(64, [(0.5, 64)])

    def page(self) -> bytes:
        now = time.time()
        lanes = tuple(
            LaneNumbers(
                fingerprint="0a1b2c3d", state=state, events=50, bytes=500, in_flight_events=5, oldest_age_seconds=1200
            )
            for state in ("active", "parked")
        )
        queue = QueueNumbers(
            events=100, bytes=950, capacity_bytes=1000, in_flight_events=10, enqueued_events=64 * self.turns,
            acked_events=60 * self.turns, dead_events=3, dead_lettered_events={"rejected": self.turns},
            dead_replayed_events=self.turns, dropped_events={"purged": 0, "evicted": self.dropped},
            disk_free_bytes=1000, disk_size_bytes=100_000,
        )  # fmt: skip
        snapshot = Snapshot(
            now=now, started_at=now - 60, version="0.1.0", upstream="api.statsig.com", queue=queue, lanes=lanes,
            forward=ForwardNumbers(gate_limit=8, gate_limit_max=8),
        )  # fmt: skip
        return Reading(self.observer, snapshot, Trend(seconds_until_full=3600.0), self._process).text()


@pytest.fixture(scope="module")
def life() -> Life:
    return Life()


@pytest.fixture(scope="session")
def samples() -> Samples:
    life = Life()
    life.turn()
    labels: dict[str, dict[str, set[str]]] = {}
    families = set()
    for family in text_string_to_metric_families(life.page().decode()):
        if family.name.startswith("event_relay_"):
            families.add(family.name + ("_total" if family.type == "counter" else ""))
        for sample in family.samples:
            known = labels.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                known.setdefault(label, set()).add(value)
    return Samples(frozenset(labels), frozenset(families), labels)


SELECTOR = re.compile(r"\b((?:event_relay|process)_\w+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
FROM_THE_SCRAPE = frozenset({"job", "instance"})


@pytest.fixture(scope="session")
def unknown_in(samples: Samples) -> Callable[[str], list[str]]:
    """Tell what an expression asks for that no relay exposes: names, labels, label values."""

    def find(expr: str) -> list[str]:
        problems = []
        for name, matchers in SELECTOR.findall(expr):
            if name not in samples.names:
                problems.append(f"no metric {name}")
                continue
            for label, operator, value in MATCHER.findall(matchers):
                if label in FROM_THE_SCRAPE:
                    continue
                values = samples.labels[name].get(label)
                if values is None:
                    problems.append(f"{name} has no label {label}")
                elif not any(re.fullmatch(value if "~" in operator else re.escape(value), known) for known in values):
                    problems.append(f'{name} never has {label}="{value}"')
        return problems

    return find


@pytest.fixture(scope="session")
def runbook_anchors() -> frozenset[str]:
    """The anchors of the runbook's headings, as Markdown renderers make them."""
    text = (DEPLOY / "runbook.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings)
