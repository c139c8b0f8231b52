"""How a queue's file is worked on in a pod: the page's own commands, beside a real relay that is told to stop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from daemon.harness import CountingUpstream, Daemon, envelope, make_event, post, running

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def section(deploy: Path) -> str:
    page = (deploy / "README.md").read_text(encoding="utf-8")
    return page.split("### Work on the queue's file\n")[1].split("\n### ")[0]


def quoted(section: str, command: str) -> str:
    """Give what stands in quotes behind a command of the section."""
    found = re.search(rf"{command} '([^']+)'", section)
    assert found, f"the section has no {command}"
    return found[1]


def test_the_file_is_worked_on_between_two_lives_of_the_relay_and_nothing_is_lost(tmp_path: Path, section: str) -> None:
    with CountingUpstream() as upstream:
        upstream.close()
        daemon = Daemon(tmp_path, upstream.url, settings={"shutdown": {"drain_seconds_max": 0}})
        loop = quoted(section, "sh -c").replace("/etc/event-relay/config.toml", str(daemon.config_file))
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # noqa: PTH120
        with running(daemon):
            assert post(daemon.url, envelope([make_event("kept", 1)])).accepted
            mend = subprocess.Popen(
                ["/bin/sh", "-c", loop], env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            try:
                time.sleep(1.5)
                assert mend.poll() is None, "it waits for the lock"
                assert daemon.process
                end = quoted(section, "python -c").replace("kill(1,", f"kill({daemon.process.pid},")
                subprocess.run([sys.executable, "-c", end], check=True)
                assert daemon.process.wait(20) == 0
                told, refused = mend.communicate(timeout=20)
            finally:
                mend.kill()
        assert mend.returncode == 0
        assert b"is sound, 1 chunks" in told
        assert b"is held by" in refused
        upstream.open()
        with running(daemon):
            daemon.wait_drained()
        assert upstream.events == [make_event("kept", 1)]
