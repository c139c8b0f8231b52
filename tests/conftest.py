"""What every test shares: no blocking calls on an event loop, hypothesis profiles, the options for longer runs."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from daemon.guarded_relay import guard

settings.register_profile("default", max_examples=100, deadline=timedelta(seconds=2))
settings.register_profile(
    "ci", max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("event relay")
    group.addoption(
        "--soak",
        nargs="?",
        type=float,
        const=3600,
        help="seconds of the tests marked soak (an hour without a number; 45 s without it)",
    )
    group.addoption("--crash-rounds", type=int, default=20, help="rounds of each kill -9 test (default: 20)")
    group.addoption("--crash-images", type=int, default=60, help="disk images of each power cut (default: 60)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("ci" if os.environ.get("CI") else "default")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs inherit that, and so would ours
        signal.signal(signal.SIGINT, signal.default_int_handler)


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Have a line of measured numbers shown at the end of the run."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"figure: {line}")


@pytest.fixture(autouse=True)
def no_blocking_calls_on_the_event_loop() -> Iterator[None]:
    """Make a blocking call of the relay's own code (disk, sleep, lock) on an event loop's thread an error."""
    blockbuster = guard("relay")
    blockbuster.activate()
    yield
    blockbuster.deactivate()
