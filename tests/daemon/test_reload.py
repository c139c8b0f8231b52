"""SIGHUP: secrets and the log's level are read again, without a restart and without losing a request."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from daemon.harness import CountingUpstream, Daemon, envelope, make_event, post, running, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def hang_up(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


def test_a_hangup_lets_a_new_key_in_and_an_old_one_no_longer(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-old\n")
    with CountingUpstream() as upstream:
        settings = {"listen": {"api_keys_allowed_file": str(keys)}}
        with running(Daemon(tmp_path, upstream.url, settings=settings)) as daemon:
            assert send(daemon, "secret-old") == 202
            assert send(daemon, "secret-new") == 401
            keys.write_text("secret-new\n")
            hang_up(daemon)
            wait_until("the new key is known", lambda: send(daemon, "secret-new") == 202, seconds=1.5)
            assert send(daemon, "secret-old") == 401
            daemon.wait_drained()


def test_a_hangup_changes_the_log_level_and_a_broken_configuration_changes_nothing(tmp_path: Path) -> None:
    with CountingUpstream() as upstream, running(Daemon(tmp_path, upstream.url)) as daemon:
        sound = daemon.config_file.read_text()
        daemon.config_file.write_text(sound + "nonsense = 1\n")
        hang_up(daemon)
        wait_until("it is told", lambda: "reload_refused" in daemon.log)
        assert "nonsense" in daemon.log
        daemon.config_file.write_text(sound.replace('format = "json"', 'format = "json"\nlevel = "debug"'))
        hang_up(daemon)
        wait_until("the level is taken", lambda: '"log_level":"debug"' in daemon.log)
        assert send(daemon, "secret-a") == 202
        daemon.wait_drained()


def send(daemon: Daemon, key: str) -> int:
    return post(daemon.url, envelope([make_event("reload", 0)]), {"statsig-api-key": key}).status
