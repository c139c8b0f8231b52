"""A 202 leaves only after the disk has said yes: read from the order of the real daemon's system calls."""

from __future__ import annotations

import http.client
import re
import shutil
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemon.harness import RELAY, CountingUpstream, Daemon, envelope, running

CALLS = "fsync,fdatasync,write,writev,pwrite64,pwritev,sendto,sendmsg"
SERIAL, CONCURRENT, CLIENTS = 20, 15, 4
WEAK = Path(__file__).parents[1] / "crash" / "weak_relay.py"

_LINE = re.compile(r"^(?P<thread>\d+) +(?:<\.\.\. )?(?P<call>\w+)(?P<rest>.*)$", re.DOTALL)
_PEER = re.compile(r"TCP(?:v6)?:\[[^\]]*->(?:\[?[0-9a-f:.]+\]?):(\d+)\]")
_ID = re.compile(r"durable-\d+-\d+\b")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to watch system calls")


@dataclass
class Judge:
    """Follows a trace line by line and keeps each 202 that left too early."""

    answers: dict[int, list[str]]
    """Client's port → ids it was answered 202 for, in order."""
    serial_ids: frozenset[str]
    """Sent one at a time with upstream down: nothing else writes, so nothing at all may be unsynced."""
    judged: int = 0
    early: list[str] = field(default_factory=list)
    _written: set[str] = field(default_factory=set)
    _dirty: bool = False
    _durable: set[str] = field(default_factory=set)
    _syncing: dict[str, set[str]] = field(default_factory=dict)
    _nth: dict[int, int] = field(default_factory=dict)

    def follow(self, line: str) -> None:
        """Take the next line of `strace -f -yy`."""
        if not (match := _LINE.match(line)):
            return
        thread, call, rest = match["thread"], match["call"], match["rest"]
        starts, ends = " resumed>" not in rest[:10], "<unfinished ...>" not in rest
        if call in ("fsync", "fdatasync"):
            if starts and "queue.db-wal>" in rest:
                self._syncing[thread] = set(self._written)
                self._dirty = False
            if ends and (covered := self._syncing.pop(thread, None)) is not None and rest.rstrip().endswith("= 0"):
                self._durable |= covered
        elif starts and "queue.db-wal>" in rest:
            self._written.update(_ID.findall(rest))
            self._dirty = True
        elif starts and "HTTP/1.1 202" in rest and (peer := _PEER.search(rest)):
            self._answer(int(peer[1]))

    def _answer(self, port: int) -> None:
        ids = self.answers.get(port, [])
        nth = self._nth[port] = self._nth.get(port, 0) + 1
        if nth > len(ids):
            return
        self.judged += 1
        wanted = ids[nth - 1]
        if wanted not in self._durable or (wanted in self.serial_ids and self._dirty):
            self.early.append(wanted)


def send(daemon: Daemon, client: int, count: int, answers: dict[int, list[str]]) -> None:
    """Post one event a request on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    connection.connect()
    port = connection.sock.getsockname()[1]
    for number in range(count):
        name = f"durable-{client}-{number}"
        body = envelope([f'{{"eventName":"e","value":"{name}"}}'.encode()])
        connection.request("POST", "/v1/log_event", body, {"statsig-api-key": "secret-test"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 202
        answers.setdefault(port, []).append(name)
    connection.close()


def trace(folder: Path, command: tuple[str, ...]) -> Judge:
    """Run the daemon under strace, first with one client and no upstream, then with several, and judge."""
    calls = folder / "calls"
    tracer = ("strace", "-f", "-yy", "-s", "20000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(calls))
    answers: dict[int, list[str]] = {}
    with CountingUpstream() as upstream:
        upstream.close()
        with running(Daemon(folder, upstream.url, command=(*tracer, *command))) as daemon:
            send(daemon, 0, SERIAL, answers)
            serial = frozenset(name for names in answers.values() for name in names)
            upstream.open()
            daemon.wait_drained()
            clients = [
                threading.Thread(target=send, args=(daemon, client, CONCURRENT, answers))
                for client in range(1, CLIENTS + 1)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            daemon.wait_drained()
    judge = Judge(answers, serial)
    for line in calls.read_text(errors="replace").splitlines():
        judge.follow(line)
    assert judge.judged == SERIAL + CONCURRENT * CLIENTS, "some answers were not seen in the trace"
    return judge


@needs_strace
def test_each_202_leaves_after_the_sync_that_covers_its_commit(tmp_path: Path) -> None:
    assert trace(tmp_path, RELAY).early == []


@needs_strace
def test_a_relay_that_does_not_sync_each_commit_is_caught(tmp_path: Path) -> None:
    judge = trace(tmp_path, (sys.executable, str(WEAK)))
    assert len(judge.early) > judge.judged // 2


WAL = "9</q/queue.db-wal>"
PEER = "7<TCP:[127.0.0.1:9463->127.0.0.1:40000]>"
WRITTEN = f'1     pwrite64({WAL}, "durable-0-0", 11, 56) = 11'
ANSWERED = f'2 write({PEER}, "HTTP/1.1 202 Accepted\\r\\n", 25) = 25'


@pytest.mark.parametrize(
    ("lines", "early"),
    [
        ([WRITTEN, f"1 fdatasync({WAL}) = 0", ANSWERED], 0),
        ([WRITTEN, f"1 fdatasync({WAL} <unfinished ...>", "1 <... fdatasync resumed>) = 0", ANSWERED], 0),
        ([WRITTEN, ANSWERED, f"1 fdatasync({WAL}) = 0"], 1),
        ([WRITTEN, f"1 fdatasync({WAL} <unfinished ...>", ANSWERED, "1 <... fdatasync resumed>) = 0"], 1),
        ([WRITTEN, f"1 fdatasync({WAL}) = -1 EIO (Input/output error)", ANSWERED], 1),
        ([WRITTEN, "1 fdatasync(3</q/queue.db>) = 0", ANSWERED], 1),
        ([f"1 fdatasync({WAL} <unfinished ...>", WRITTEN, "1 <... fdatasync resumed>) = 0", ANSWERED], 1),
        ([WRITTEN, f"1 fdatasync({WAL}) = 0", f'1 pwrite64({WAL}, "commit", 6, 99) = 6', ANSWERED], 1),
    ],
)
def test_the_judge_tells_an_early_answer_from_a_timely_one(lines: list[str], early: int) -> None:
    judge = Judge({40000: ["durable-0-0"]}, frozenset({"durable-0-0"}))
    for line in lines:
        judge.follow(line)
    assert (judge.judged, len(judge.early)) == (1, early)
