"""The same through the kernel's door: strace makes the real daemon's system calls fail, and the shim is no judge."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from daemon.harness import wait_until
from faults.rig import Row, trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from daemon.harness import Daemon

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make system calls fail")

INJECTIONS = {
    "ENOSPC on pwrite64": ("pwrite64", "error=ENOSPC"),
    "EIO on pwrite64, every third": ("pwrite64", "error=EIO:when=1+3"),
    "EIO on fdatasync and fsync": ("fdatasync,fsync", "error=EIO"),
    "fdatasync delayed by 1.5 s": ("fdatasync,fsync", "delay_enter=1500000"),
}

_TAMPERED = re.compile(r"\((INJECTED|DELAYED)\)")


@contextmanager
def injected(daemon: Daemon, folder: Path, calls: str, what: str) -> Iterator[Path]:
    """Attach to the daemon, have calls on the queue's files fail inside the block, and let go of it."""
    assert daemon.process is not None
    log = folder / "strace"
    files = [word for name in ("queue.db", "queue.db-wal") for word in ("-P", str(folder / "queue" / "spool" / name))]
    words = ["-f", "-qq", "-p", str(daemon.process.pid), "-o", str(log), *files, "-e", f"trace={calls}"]
    tracer = subprocess.Popen(["strace", *words, "-e", f"inject={calls}:{what}"], stderr=subprocess.PIPE, text=True)
    try:
        yield log
    finally:
        tracer.terminate()
        _, said = tracer.communicate(timeout=10)
    if "attach" in said:
        pytest.skip(f"strace may not attach here: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("name", INJECTIONS)
def test_system_calls_that_fail_lose_nothing(tmp_path: Path, name: str, tell: Callable[[Row], None]) -> None:
    with trial(tmp_path) as one:
        one.load.wait_acked(100)
        with injected(one.daemon, tmp_path, *INJECTIONS[name]) as log:
            wait_until("a call was tampered with", lambda: log.exists() and _TAMPERED.search(log.read_text()))
            time.sleep(2)
        one.recover(time.monotonic())
        one.check_answers()
        audit = one.audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    tell(Row(f"strace: {name}", 1, audit, one.recovery_seconds, f"slowest answer {one.load.slowest:.1f} s"))
